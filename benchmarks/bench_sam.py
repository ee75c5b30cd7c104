"""SAM's encoder and the phases of pruning it at ViT-B's shapes: `icp_jax` beside PyTorch.

    python benchmarks/bench_sam.py --out bench_sam.json

Images of 1024², random weights, float32. Forward: the whole encoder (12 blocks and neck) on one
image, the PyTorch side being transformers' `SamVisionModel` with its default attention. Phases:
the loop of ICP on two blocks of that shape, one windowed and one global, with the same weights,
images and budgets; the PyTorch side is transformers' layers, `torch_reference.py`'s SparseGPT,
its second moments taken by hooks, and fused Adam. Each side runs in a process of its own, the
sides take turns, and each warms up once before the clock. Peak memory is the process's (VmHWM),
compiled programs and imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import numpy as np

SIDE = Path(__file__).with_name("sam_sides.py")
SIDES = ("jax", "torch")
TASKS = ("forward", "phases")
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "JAX_PLATFORMS": "cpu"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4, help="of the phases")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="a name under results/; without it nothing is written")
    args = parser.parse_args()
    found = {task: {side: [] for side in SIDES} for task in TASKS}
    outs: dict = {}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "found.npz"
        for _ in range(args.rounds):
            for task in TASKS:
                for side in SIDES:
                    command = [sys.executable, str(SIDE), side, task, str(args.images), str(file)]
                    subprocess.run(command, check=True, env={**os.environ, **ENVIRONMENT})
                    with np.load(file) as saved:
                        outs[task, side] = saved["out"]
                        found[task][side].append(json.loads(str(saved["record"])))
                    print(task, side, found[task][side][-1], flush=True)
    record = {**common.provenance(), "images": args.images, "rounds": args.rounds}
    for task in TASKS:
        record[task] = {side: summary(found[task][side]) for side in SIDES}
        jax, torch = (found[task][side] for side in SIDES)
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(jax, torch, strict=True)]
        record[task]["jax_over_torch"] = round(statistics.median(ratios), 3)
        a, b = (outs[task, side] for side in SIDES)
        record[task]["agreement"] = agreement(task, a, b)
        print(task, json.dumps(record[task], indent=2))
    if args.out:
        print(common.write(args.out, record))


def summary(runs: list[dict]) -> dict:
    """Medians of seconds, of each phase and of the peak."""
    median = {p: statistics.median(r["phases"][p] for r in runs) for p in runs[0]["phases"]}
    return {
        "seconds": round(statistics.median(r["seconds"] for r in runs), 2),
        "phases": {phase: round(seconds, 2) for phase, seconds in median.items()},
        "peak_mib": round(statistics.median(r["peak"] for r in runs) / 2**20),
    }


def agreement(task: str, a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Forward: the largest distance. Phases: how many mask entries are the same."""
    if task == "forward":
        return {"largest_difference": float(np.abs(a - b).max())}
    return {"same_mask": float(np.mean((a == 0) == (b == 0)))}


if __name__ == "__main__":
    main()
