"""The part of `bench_gpu.py` that holds a GPU's results against the CPU's, on the bundled model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np


def parity(job, scratch: Path, environment: dict[str, str]) -> dict:
    """Perplexity and masks of the bundled model's ICP, by device and dtype."""
    from icp_jax.demo import BUNDLED
    from icp_jax.streaming.source import FolderSource

    found: dict[str, dict] = {}
    trees = {}
    for name, platform, dtype in (
        ("cpu float32", "cpu", "float32"),
        ("gpu float32", "", "float32"),
        ("gpu bfloat16", "", "bfloat16"),
    ):
        out = scratch / name.replace(" ", "-")
        base = [sys.executable, "-m", "icp_jax.cli"]
        code = [*base, "prune", str(BUNDLED), str(out), "--dtype", dtype]
        code += ["--data", str(BUNDLED / "calibration.txt"), "--json"]
        variables = environment | ({"JAX_PLATFORMS": platform} if platform else {})
        subprocess.run(code, env=variables, check=True, stdout=subprocess.DEVNULL)
        code = [*base, "eval", str(out), "--data", str(BUNDLED / "heldout.txt"), "--json"]
        code += ["--seq-len", "256", "--dtype", "float32"]
        said = subprocess.run(
            code, env=variables | {"JAX_PLATFORMS": "cpu"}, check=True, stdout=subprocess.PIPE
        )
        record = json.loads((out / "icp_run.json").read_text())
        found[name] = {
            "perplexity": json.loads(said.stdout)["perplexity"],
            "errors": [block["error"] for block in record["blocks"]],
            "seconds": record["seconds"],
        }
        source = FolderSource(out)
        trees[name] = [source.block(t) for t in range(source.family.n_blocks)]
    for name, blocks in trees.items():
        found[name] |= _differ(source.family, trees["cpu float32"], blocks)
    return found


def _differ(family, one, two) -> dict[str, list[float]]:
    """By block: the share of masks that differ, and kept weights' relative distance."""
    masks, kept = [], []
    for a, b in zip(one, two, strict=True):
        pairs = [(a[s.name]["kernel"], b[s.name]["kernel"]) for s in family.linears]
        x, y = (np.concatenate([p[k].ravel() for p in pairs]) for k in (0, 1))
        both = (x != 0) & (y != 0)
        masks.append(float(np.mean((x != 0) != (y != 0))))
        kept.append(float(np.linalg.norm((x - y)[both]) / np.linalg.norm(x[both])))
    return {"masks_differ": masks, "kept_relative_distance": kept}
