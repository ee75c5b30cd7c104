"""The settings of a run: checked, filled in with defaults, or loaded from a config file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from icp_jax import checks, config_files
from icp_jax.checks import parse_bytes
from icp_jax.errors import InputError
from icp_jax.settings import (
    CalibrationConfig,
    CompensateConfig,
    Dtype,
    EvalConfig,
    MemoryConfig,
    MethodName,
    PruneConfig,
    QuantConfig,
    RunConfig,
)

__all__ = [
    "CalibrationConfig",
    "CompensateConfig",
    "Dtype",
    "EvalConfig",
    "MemoryConfig",
    "MethodName",
    "PruneConfig",
    "QuantConfig",
    "RunConfig",
    "check",
    "filled",
    "load",
    "parse_bytes",
    "rechosen",
]

AnyConfig = TypeVar("AnyConfig", RunConfig, EvalConfig)

# What stands for a setting that is left open, where that needs no model.
DEFAULTS = {
    "prune.sparsity": 0.7,
    "prune.damping": 0.01,
    "prune.block_size": 128,
    "compensate.epochs": 1,
    "compensate.lr": 1e-4,
    "compensate.gamma": 0.87,
    "seed": 0,
}


def check(config: AnyConfig) -> AnyConfig:
    """The same settings as plain Python values.

    Raises InputError, in one line, for a setting of another type, out of its range, or without a
    meaning beside the others.
    """
    kind: Any = EvalConfig if isinstance(config, EvalConfig) else RunConfig
    config = checks.plain(kind, config)
    checks.ranges(config)
    if isinstance(config, RunConfig):
        checks.sensible(config)
    return config


def filled(run: RunConfig) -> RunConfig:
    """The run with its unset settings filled in, so far as DEFAULTS says; no sparsity beside a
    pattern.
    """
    settings = checks.flat(run)
    for name, default in DEFAULTS.items():
        if settings[name] is None and not (name == "prune.sparsity" and run.prune.structured):
            run = checks.put(run, name, default)
    return run


def rechosen(run: RunConfig, method: str | None, pattern: str | None = None) -> RunConfig:
    """The run with another method or pattern; None leaves the run's own.

    Settings that were chosen for the old one (alpha, beta and rearrange), or that have no meaning
    for the new one, are unset.
    """
    other = method not in (None, run.prune.method)
    run = checks.put(run, "prune.method", method or run.prune.method)
    run = checks.put(run, "prune.pattern", pattern or run.prune.pattern)
    for name in checks.idle(run):
        run = checks.put(run, name, None)
    if other or (pattern and run.prune.structured):
        run = checks.put(run, "prune", replace(run.prune, alpha=None, beta=None, rearrange=None))
    return run


def load(name: str) -> RunConfig:
    """The run that a config describes: a Python file, by path or by the name of one in the package.

    Raises InputError.
    """
    path = config_files.find(name)
    config = config_files.run(path)
    if not isinstance(config, RunConfig):
        raise InputError(f"config {path}: get_config() must return an icp_jax.RunConfig")
    try:
        return check(config)
    except InputError as error:
        raise InputError(f"config {path}: {error}") from None
