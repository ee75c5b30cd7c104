"""Which learning rate, epochs, alpha and beta ICP wants, per model and sparsity.

    python benchmarks/bench_defaults.py bundled --few --out defaults_opt-pydoc.json
    python benchmarks/bench_defaults.py stories260K --stories tinystories-slice.txt \\
        --out defaults_stories260K.json
    python benchmarks/bench_defaults.py smollm2 --few --calibration smollm2_calibration.npy \\
        --evaluation smollm2_evaluation.npy --out defaults_smollm2.json

A run per point, all on the same calibration windows, in one process. A result file keeps its
points; running again adds the missing ones. `--only 0.5 2:4` takes those zeros only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import bench_stories
import common
import numpy as np

import icp_jax
from icp_jax import demo
from icp_jax.config import CompensateConfig, RetuneConfig

MEASURED = ("perplexity", "seconds")
TUNED = ("lr", "gamma", "epochs")
AGAIN = "retune_"
TARGETS = ({"sparsity": 0.5}, {"sparsity": 0.6}, {"sparsity": 0.7}, {"pattern": "2:4"})
RATES, FEW_RATES = (1e-4, 5e-4, 1e-3, 2e-3, 5e-3), (5e-4, 1e-3)
PLUS_RATES, FEW_PLUS_RATES = (5e-4, 1e-3, 2e-3, 5e-3), (1e-3,)
ONCE = {"epochs": 1, "retune_epochs": 1}
UNIFORM, PUBLISHED = {"alpha": 1.0, "beta": 0.0}, {"alpha": 0.691, "beta": 0.2}


def grid(few: bool) -> list[dict]:
    """ICP by rate, by share of sparsity and by epochs, ICP+ by rate, and SparseGPT."""
    points = []
    for target in TARGETS:
        free = "pattern" not in target
        uniform = {**target, **UNIFORM} if free else target
        points += [{**uniform, "lr": lr, "epochs": 1} for lr in (FEW_RATES if few else RATES)]
        if free:
            points += [{**target, **PUBLISHED, "lr": lr, "epochs": 1} for lr in (1e-4, 1e-3)]
        if not few:
            points.append({**uniform, "lr": 1e-3, "epochs": 4})
        points += [
            {**uniform, "method": "icp+", **ONCE, "lr": lr, "retune_lr": lr}
            for lr in (FEW_PLUS_RATES if few else PLUS_RATES)
        ]
        points.append({**uniform, "method": "sparsegpt"})
    return points


def zeros(point: dict) -> str:
    """The sparsity or the pattern of a point, as text."""
    return point.get("pattern") or f"{point['sparsity']:g}"


def with_texts(description: str) -> argparse.ArgumentParser:
    """A parser of a model, its texts, the seeds and the zeros. See `loaded` and `texts`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", help="a folder, or bundled")
    parser.add_argument("--calibration", default=str(demo.BUNDLED / "calibration.txt"))
    parser.add_argument("--evaluation", default=str(demo.BUNDLED / "heldout.txt"))
    parser.add_argument("--stories", type=Path, help="text, for a model with llama2.c's tokenizer")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="sparsities and patterns")
    return parser


def loaded(args) -> icp_jax.Model:
    return icp_jax.load(str(demo.BUNDLED) if args.model == "bundled" else args.model)


def texts(args, model) -> tuple[np.ndarray, Any]:
    """(calibration windows, evaluation text or windows)."""
    if args.stories:
        stream, evaluation = bench_stories.tokens(args.stories, Path(args.model) / "tok512.bin")
        rng, length = np.random.default_rng(0), bench_stories.WINDOW
        starts = rng.integers(0, len(stream) - length, args.samples)
        return np.stack([stream[s : s + length] for s in starts]), evaluation
    if args.calibration.endswith(".npy"):
        return np.load(args.calibration)[: args.samples], np.load(args.evaluation)
    tokens = icp_jax.calibrate(model, args.calibration, samples=args.samples)
    return tokens, args.evaluation


def measure(model, tokens, evaluation, point: dict, seed: int) -> dict:
    tuned = {
        "compensation": CompensateConfig(**{k: point[k] for k in TUNED if k in point}),
        "retune": RetuneConfig(**{k: point[AGAIN + k] for k in TUNED if AGAIN + k in point}),
    }
    settings = {k: v for k, v in point.items() if k not in TUNED and not k.startswith(AGAIN)}
    started = time.perf_counter()
    if point.get("method", "icp") in ("icp", "icp+"):  # no other method draws anything
        settings |= {"seed": seed}
    pruned, _ = icp_jax.prune(model, tokens, **tuned, **settings)
    seconds = time.perf_counter() - started
    return {
        **point,
        "seed": seed,
        "perplexity": icp_jax.evaluate(pruned, evaluation).perplexity,
        "seconds": seconds,
    }


def main() -> None:
    parser = with_texts(__doc__.splitlines()[0])
    parser.add_argument("--few", action="store_true", help="a smaller grid")
    parser.add_argument("--out", required=True, help="a name under results/")
    args = parser.parse_args()
    model = loaded(args)
    tokens, evaluation = texts(args, model)
    points = [p for p in grid(args.few) if not args.only or zeros(p) in args.only]
    target = common.RESULTS / args.out
    rows = json.loads(target.read_text())["points"] if target.exists() else []
    done = [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]
    dense = icp_jax.evaluate(model, evaluation).perplexity
    for seed, point in itertools.product(args.seeds, points):
        if {**point, "seed": seed} in done:
            continue
        rows.append(measure(model, tokens, evaluation, point, seed))
        print(json.dumps(rows[-1]), flush=True)
        record = {
            **common.provenance(),
            "model": Path(args.model).name,
            "dense_perplexity": dense,
            "windows": list(tokens.shape),
            "points": rows,
        }
        common.write(args.out, record)


if __name__ == "__main__":
    main()
