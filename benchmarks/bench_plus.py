"""What each piece of icp+ brings and costs, per model and sparsity.

    python benchmarks/bench_plus.py bundled --lr 1e-3
    python benchmarks/bench_plus.py stories260K --stories tinystories-slice.txt --lr 5e-3
    python benchmarks/bench_plus.py smollm2 --calibration smollm2_calibration.npy \\
        --evaluation smollm2_evaluation.npy --also tinystories-slice.txt --lr 1e-3

On the same calibration windows, all in one process: `icp`; `icp` with a re-tune of the pruned
block; `icp+`, which prunes it in steps and tunes it after each; both with ALPS as the solver; and
`icp+` followed by one epoch of the global pass on the same windows. --lr: of all tuning of blocks.
--also: a text of another kind to evaluate on. The result file keeps its points; running again adds
the missing ones. `--only 0.7 2:4` takes those zeros only, `--routes` those pieces only. Seconds are
of the pruning and of the global pass; the first point of a process also compiles.
"""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import common
import numpy as np
from bench_defaults import loaded, texts, with_texts

import icp_jax
from icp_jax.backend import heap
from icp_jax.config import CompensateConfig, RetuneConfig

OUT = "plus.json"
TARGETS: dict[str, dict[str, Any]] = {
    **{f"{s:g}": {"sparsity": s, "alpha": 1.0, "beta": 0.0} for s in (0.5, 0.6, 0.7)},
    "2:4": {"pattern": "2:4"},
}
PLUS, GLOBAL = "icp+", "icp+, global pass"
ALPS: dict[str, Any] = {"solver": "alps"}
RETUNE = {"method": "icp+", "compensate": 1, "steps": 1}
ROUTES: dict[str, dict[str, Any]] = {
    "icp": {"method": "icp", "compensate": 1},
    "icp, re-tune": RETUNE,
    "icp, re-tune, alps": RETUNE | ALPS,
    PLUS: {"method": "icp+"},
    "icp+, alps": {"method": "icp+"} | ALPS,
}


def main() -> None:
    parser = with_texts(__doc__.splitlines()[0])
    parser.add_argument("--also", help="a second text to evaluate on")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--global-lr", type=float, default=5e-4)
    parser.add_argument("--routes", nargs="+", default=[*ROUTES, GLOBAL])
    parser.add_argument("--busy", action="store_true", help="other work runs: do not show times")
    args = parser.parse_args()
    heap.reuse()
    dense = loaded(args)
    tokens, evaluation = texts(args, dense)
    name, length = dense.folder.name, tokens.shape[1]

    def measured(model: icp_jax.Model) -> dict[str, float]:
        found = {"perplexity": icp_jax.evaluate(model, evaluation).perplexity}
        if args.also:
            other = icp_jax.evaluate(model, args.also, seq_len=length, limit=24)
            found["also"] = other.perplexity
        return found

    facts = {"windows": list(tokens.shape), "dense": measured(dense), "busy": args.busy}
    store = Store(name, facts)
    for seed, zeros in itertools.product(args.seeds, args.only or TARGETS):
        point = {"model": name, "zeros": zeros, "lr": args.lr, "seed": seed}
        last = {**point, "route": GLOBAL, "global_lr": args.global_lr}
        plus = None
        for route, settings in ROUTES.items():
            if route not in args.routes or {**point, "route": route} in store:
                continue
            made = prune(dense, tokens, {**TARGETS[zeros], **settings}, args.lr, seed)
            store.add({**point, "route": route}, measured(made[0]), made[1])
            plus = made if route == PLUS else plus
        if GLOBAL in args.routes and last not in store:
            asked = {**TARGETS[zeros], **ROUTES[PLUS]}
            pruned, before = plus or prune(dense, tokens, asked, args.lr, seed)
            (tuned, metrics), seconds = timed(
                icp_jax.distill, pruned, dense, tokens, lr=args.global_lr, seed=seed
            )
            kl = np.asarray(metrics.heldout).tolist()
            store.add(last, {**measured(tuned), "kl": kl}, before + seconds)


def prune(
    dense: icp_jax.Model, tokens: np.ndarray, settings: dict[str, Any], lr: float, seed: int
) -> tuple[icp_jax.Model, float]:
    """(the pruned model, seconds)."""
    rest, tuning = dict(settings), {}
    if epochs := rest.pop("compensate", 0):
        tuning["compensation"] = CompensateConfig(lr=lr, epochs=epochs)
    if rest["method"] == "icp+":
        tuning["retune"] = RetuneConfig(lr=lr, epochs=1, steps=rest.pop("steps", None))
    (pruned, _), seconds = timed(icp_jax.prune, dense, tokens, **rest, **tuning, seed=seed)
    return pruned, seconds


def timed(call: Any, *args: Any, **settings: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    found = call(*args, **settings)
    return found, time.perf_counter() - started


class Store:
    """The result file, with the points of all models. It is read anew for every point."""

    def __init__(self, model: str, facts: dict[str, Any]):
        self.model, self.facts = model, {**facts, **common.provenance()}

    def read(self) -> dict[str, Any]:
        target = common.RESULTS / OUT
        return json.loads(target.read_text()) if target.exists() else {"models": {}, "points": []}

    def __contains__(self, key: dict[str, Any]) -> bool:
        return any(key.items() <= row.items() for row in self.read()["points"])

    def add(self, key: dict[str, Any], found: dict[str, Any], seconds: float) -> None:
        """Add a point, and write the file."""
        record, row = self.read(), {**key, **found, "seconds": seconds}
        record["points"].append(row)
        record["models"][self.model] = self.facts
        print(json.dumps(row), flush=True)
        common.write(OUT, record)


if __name__ == "__main__":
    main()
