"""The two drivers, warm, in one process: the jitted `core.icp` and the streaming loop.

    python benchmarks/bench_drivers.py [--stories FOLDER --text FILE]
    python benchmarks/bench_drivers.py --opt-125m --rounds 3

Both prune the same model in memory on the same windows, with the same batch and order of samples.
Each is called once to compile, then in turns. The table has the median seconds of a call, and the
median of the turns' ratios; for the streaming loop also the seconds of its phases.
`--opt-125m`: two random blocks of OPT-125M's shape, on 16 windows of 512 tokens.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from bench_sweep import inputs
from prune_job import calibration, checkpoint

METHODS = ("icp", "sparsegpt", "wanda", "magnitude")
LR = 1e-3


def drivers(model: Any, windows: np.ndarray, method: str) -> dict[str, Any]:
    """What calls each driver once; both give the reports or the metrics of the run."""
    import jax

    import icp_jax
    from icp_jax import CompensateConfig
    from icp_jax.core.hyper import Recipe, block_orders, hyper
    from icp_jax.core.icp import icp
    from icp_jax.streaming.transfer import batch_size

    family, tuning = model.family, {"lr": LR} if method == "icp" else {}
    shapes = [model.shapes(t) for t in range(family.n_blocks)]
    recipe = Recipe(method=method, batch=batch_size(*windows.shape))
    point = hyper(family, shapes, recipe=recipe, sparsity=0.6, **tuning)
    order = block_orders(0, family.n_blocks, len(point.rates), len(windows))
    jitted = jax.jit(icp, static_argnames=("family", "recipe"))
    compensation = CompensateConfig(**tuning)
    return {
        "icp": lambda: jax.block_until_ready(
            jitted(family, model.params, windows, point, order, recipe)
        )[1],
        "streaming": lambda: icp_jax.prune(
            model, windows, method=method, sparsity=0.6, compensation=compensation
        )[1],
    }


def timed(call: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def compare(model: Any, windows: np.ndarray, method: str, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    sides = drivers(model, windows, method)
    for call in sides.values():
        call()
    turns = [{name: timed(call) for name, call in sides.items()} for _ in range(rounds)]
    phases: dict[str, float] = {}
    for block in turns[0]["streaming"][1]:
        for name, seconds in block.seconds.items():
            phases[name] = phases.get(name, 0.0) + seconds
    ratios = [turn["icp"][0] / turn["streaming"][0] for turn in turns]
    return {
        "method": method,
        **{name: statistics.median(turn[name][0] for turn in turns) for name in sides},
        "ratio": statistics.median(ratios),
        "phases": phases,
    }


def shaped(folder: Path) -> tuple[str, str, str]:
    """As `inputs`: two blocks of OPT-125M's shape."""
    settings = {"shape": "opt-125m", "blocks": 2, "samples": 16, "seq_len": 512}
    job = {**settings, "vocab": 1024, "seed": 0}
    checkpoint(job, folder / "model")
    np.save(folder / "tokens.npy", calibration(job))
    return "opt-125m", str(folder / "model"), str(folder / "tokens.npy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--opt-125m", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    import icp_jax
    from icp_jax.backend import heap

    heap.reuse()  # as the command does
    with tempfile.TemporaryDirectory() as made:
        source = shaped(Path(made)) if args.opt_125m else inputs(args, Path(made))
        name, folder, tokens = source
        model, windows = icp_jax.load(folder), np.load(tokens)
        rows = [compare(model, windows, method, args.rounds) for method in METHODS]
    for row in rows:
        print("{method:10} icp {icp:.2f} s  streaming {streaming:.2f} s  {ratio:.2f}".format(**row))
        print("  " + "  ".join(f"{phase} {s:.2f}" for phase, s in row["phases"].items()))
    record = {**common.provenance(), "model": name, "rounds": args.rounds, "rows": rows}
    print(common.write(f"bench_drivers_{name}.json", record))


if __name__ == "__main__":
    main()
