"""Immediate Compensation Pruning in JAX and Flax.

    import icp_jax
    model = icp_jax.load("facebook/opt-125m")
    tokens = icp_jax.calibrate(model, "c4")
    pruned, report = icp_jax.prune(model, tokens, sparsity=0.7)
    print(icp_jax.evaluate(pruned, "wikitext2"))
    icp_jax.save(pruned, "opt-125m-70")

Names are imported on first use, so that the command line starts quickly.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "load": "icp_jax.api",
    "calibrate": "icp_jax.api",
    "prune": "icp_jax.api",
    "distill": "icp_jax.api",
    "evaluate": "icp_jax.api",
    "evaluate_tasks": "icp_jax.evaluation.tasks",
    "save": "icp_jax.api",
    "generate": "icp_jax.generation.generate",
    "sweep": "icp_jax.sweeps.run",
    "Model": "icp_jax.model",
    "compensate": "icp_jax.core.compensate",
    "keep_zeros": "icp_jax.core.keep",
    "PruneConfig": "icp_jax.config",
    "CompensateConfig": "icp_jax.config",
    "RetuneConfig": "icp_jax.config",
    "GlobalConfig": "icp_jax.config",
    "CalibrationConfig": "icp_jax.config",
    "QuantConfig": "icp_jax.config",
    "verify": "icp_jax.runs.verify",
    "pack": "icp_jax.runs.pack",
    "unpack": "icp_jax.runs.pack",
    "save_masks": "icp_jax.runs.masks",
    "load_masks": "icp_jax.runs.masks",
    "RunConfig": "icp_jax.config",
    "InputError": "icp_jax.errors",
    "icp": "icp_jax.core.icp",
    "Hyper": "icp_jax.core.hyper",
    "Recipe": "icp_jax.core.hyper",
    "hyper": "icp_jax.core.hyper",
    "block_orders": "icp_jax.core.hyper",
}
_MODULES = ("masks", "pruners", "quantize", "stats")  # modules of icp_jax.core

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"icp_jax.core.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'icp_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
