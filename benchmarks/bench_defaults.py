"""Which learning rate, epochs, alpha and beta ICP wants, per model and sparsity.

    python benchmarks/bench_defaults.py bundled --out defaults_bundled.json
    python benchmarks/bench_defaults.py stories260K --stories tinystories-slice.txt \\
        --out defaults_stories260K.json
    python benchmarks/bench_defaults.py smollm2 --calibration smollm2_calibration.npy \\
        --evaluation smollm2_evaluation.npy --out defaults_smollm2.json

A run per point, all on the same calibration windows, in one process. A result file keeps its
points; running again adds the missing ones. `--points` takes them from a JSON file: a list of
objects with `sparsity` or `pattern`, and any of `method`, `lr`, `epochs`, `gamma`, `alpha`, `beta`,
`retune_lr`, `retune_epochs`, `retune_gamma`.
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
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
SHARES = ({"alpha": 1.0, "beta": 0.0}, {"alpha": 0.691, "beta": 0.2}, {"alpha": 0.85, "beta": 0.1})


def grid() -> list[dict]:
    """The rates at uniform sparsity, then epochs, gamma and shares of sparsity at one rate."""
    points = []
    for target in TARGETS:
        uniform = target if "pattern" in target else {**target, **SHARES[0]}
        points += [{**uniform, "lr": lr, "epochs": 1} for lr in RATES]
        for epochs, gamma in itertools.product((2, 4), (0.87, 0.5)):
            points.append({**uniform, "lr": 5e-4, "epochs": epochs, "gamma": gamma})
        if "pattern" not in target:
            points += [{**target, **share, "lr": 5e-4, "epochs": 1} for share in SHARES[1:]]
            points += [{**target, **SHARES[1], "lr": 1e-4, "epochs": 1}]
        points.append({**uniform, "method": "sparsegpt"})
    return points


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    bundled = demo.BUNDLED
    parser.add_argument("--calibration", default=str(bundled / "calibration.txt"))
    parser.add_argument("--evaluation", default=str(bundled / "heldout.txt"))
    parser.add_argument("--stories", type=Path, help="text, for a model with llama2.c's tokenizer")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--points", type=Path)
    parser.add_argument("--out", required=True, help="a name under results/")
    args = parser.parse_args()
    model = icp_jax.load(str(bundled) if args.model == "bundled" else args.model)
    tokens, evaluation = texts(args, model)
    points = json.loads(args.points.read_text()) if args.points else grid()
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
