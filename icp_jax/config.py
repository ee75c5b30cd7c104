"""Validate the settings of a run, fill in their defaults, or load them from a config file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from icp_jax import checks, config_files
from icp_jax.checks import parse_bytes
from icp_jax.settings import (
    CalibrationConfig,
    CompensateConfig,
    Dtype,
    EvalConfig,
    GlobalConfig,
    MemoryConfig,
    MethodName,
    PruneConfig,
    QuantConfig,
    RetuneConfig,
    RunConfig,
)

__all__ = [
    "CalibrationConfig",
    "CompensateConfig",
    "Dtype",
    "EvalConfig",
    "GlobalConfig",
    "MemoryConfig",
    "MethodName",
    "PruneConfig",
    "QuantConfig",
    "RetuneConfig",
    "RunConfig",
    "check",
    "filled",
    "load",
    "parse_bytes",
    "rechosen",
]

AnyConfig = TypeVar("AnyConfig", RunConfig, EvalConfig)

# Defaults of unset settings that do not depend on the model.
DEFAULTS = {
    "prune.sparsity": 0.7,
    "prune.solver": "sparsegpt",
    "prune.damping": 0.01,
    "prune.block_size": 128,
    "compensate.epochs": 1,
    "compensate.lr": 5e-4,
    "compensate.gamma": 0.87,
    "retune.epochs": 1,
    "retune.lr": 1e-3,
    "retune.gamma": 0.87,
    "retune.steps": 3,
    "seed": 0,
}
# Those that depend on the method.
OF_METHOD: dict[str, dict[str, Any]] = {"icp+": {"compensate.epochs": 0}}
# Those of the global pass, if there is one.
GLOBAL = {"global_pass.lr": 5e-4, "global_pass.batch": 1}


def check(config: AnyConfig) -> AnyConfig:
    """Validate a config and convert its values to plain Python types.

    Raises InputError for a setting of the wrong type, out of range, or in conflict with others.
    """
    kind: Any = EvalConfig if isinstance(config, EvalConfig) else RunConfig
    config = checks.plain(kind, config)
    checks.ranges(config)
    if isinstance(config, RunConfig):
        checks.sensible(config)
    return config


def filled(run: RunConfig) -> RunConfig:
    """Fill in unset settings from DEFAULTS. Sparsity stays unset if something else fixes it."""
    settings = checks.flat(run)
    usual = DEFAULTS | OF_METHOD.get(run.prune.method, {})
    usual |= GLOBAL if run.global_pass.epochs else {}
    for name, default in usual.items():
        fixed = name == "prune.sparsity" and (run.prune.structured or run.prune.sparsity_of)
        if settings[name] is None and not fixed:
            run = checks.put(run, name, default)
    return run


def rechosen(run: RunConfig, method: str | None, pattern: str | None = None) -> RunConfig:
    """Replace the method or the pattern of a run; None keeps the current one.

    Resets alpha, beta and rearrange, and all settings that the new method or pattern does not use.
    """
    other, usual = method not in (None, run.prune.method), checks.flat(RunConfig())
    run = checks.put(run, "prune.method", method or run.prune.method)
    run = checks.put(run, "prune.pattern", pattern or run.prune.pattern)
    for name in checks.idle(run):
        run = checks.put(run, name, usual[name])
    if other or (pattern and run.prune.structured):
        run = checks.put(run, "prune", replace(run.prune, alpha=None, beta=None, rearrange=None))
    return run


def load(name: str) -> RunConfig:
    """Load and validate a config: the path of a Python file, or the name of a bundled config.

    Raises InputError.
    """
    return config_files.load(name, config_files.CONFIG, RunConfig, check)
