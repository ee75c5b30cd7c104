"""The command that repeats a run, from the settings in its record."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from icp_jax.checks import flat, idle, put
from icp_jax.settings import RunConfig

# Options that are not spelled as their settings; a test compares them with the command line's.
SHORT = {
    "prune.method": "--method",
    "prune.sparsity": "--sparsity",
    "prune.pattern": "--pattern",
    "quant.bits": "--bits",
    "prune.include": "--include",
    "prune.exclude": "--exclude",
    "prune.sparsity_of": "--sparsity-of",
    "prune.keep_first": "--keep-first",
    "prune.keep_last": "--keep-last",
    "global_pass.epochs": "--global-epochs",
    "global_pass.lr": "--global-lr",
    "global_pass.batch": "--global-batch",
    "calibration.data": "--data",
    "calibration.samples": "--samples",
    "calibration.seq_len": "--seq-len",
    "memory.device": "--device-memory",
    "memory.host": "--host-memory",
}
FLAGS = ("quant.symmetric", "quant.search", "quant.packed", "calibration.overlap")


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a record by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            found[name] = value
    return found


def used(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a record without those that its method or pattern does not use."""
    run, settings = RunConfig(), settings_of(config)
    for name in flat(run).keys() & settings:
        run = put(run, name, settings[name])
    unused = idle(run)
    return {name: value for name, value in settings.items() if name not in unused}


def repeat(config: dict[str, Any]) -> str:
    """The `icp-jax prune` command of a record's settings, ready for a shell."""
    settings = used(config)
    words = ["icp-jax", "prune", str(settings.get("model")), str(settings.get("out"))]
    return shlex.join([*words, *_options(settings)])


def _options(settings: dict[str, Any]) -> Iterator[str]:
    usual = flat(RunConfig())
    for name, value in settings.items():
        if name in ("model", "out") or value is None or value == usual.get(name):
            continue
        option = SHORT.get(name, f"--{name.replace('_', '-')}")
        if name in FLAGS:
            yield option
        elif isinstance(value, list | tuple):
            for one in value:
                yield from (option, one)
        else:
            yield from (option, str(value))
