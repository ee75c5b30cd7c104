"""A sweep as settings: where it starts, its points or its search space, and the evaluation data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from icp_jax import checks, config, config_files
from icp_jax.config import RunConfig
from icp_jax.errors import InputError
from icp_jax.models.spec import Family
from icp_jax.sweeps.space import Choice, Integers, Range, Uniform

Point = Mapping[str, Any]  # dotted setting -> value, such as {"prune.sparsity": 0.5}
SAMPLERS = ("tpe", "cmaes", "grid", "qmc", "random")
OBJECTIVES = ("perplexity",)
FIXED = ("model", "out", "devices", "quant.packed")  # the same for all points
SHOWN = 80  # characters of a point in a message


@dataclass(frozen=True)
class Sweep:
    """Many runs of one model. Give `points`, or `space` for a search."""

    base: RunConfig | str
    """The settings that all points start from: a config, its file, or the name of a bundled one."""
    points: Sequence[Point] | Callable[[Family], Sequence[Point]] = ()
    """Settings of each point, such as those of `grid`; or a function of the model's family."""
    space: Mapping[str, Range] = field(default_factory=dict)
    """The range of each setting of a search."""
    data: str = ""
    """Evaluation data, as in `evaluate`."""
    seq_len: int | None = None
    """Tokens per evaluation window. Default: the model's context, at most 2048."""
    limit: int | None = None
    """Maximum number of evaluation windows, the first ones. Default: all."""
    objective: str = "perplexity"
    """What a search minimizes."""
    sampler: str = "tpe"
    """Sampler of a search: tpe, cmaes, grid, qmc or random."""
    trials: int | None = None
    """Maximum number of points, those of earlier processes included. Default: no limit."""
    budget: float | None = None
    """Minutes after which no further point starts. Default: no limit."""
    seed: int = 0
    """Random seed of the sampler."""
    model: str = ""
    """Replaces the base's model."""
    calibration: str = ""
    """Replaces the base's calibration data."""


FILE = config_files.Kind("sweep", "get_sweep", "an icp_jax.sweeps.Sweep", "sweeps")


def load(name: str) -> Sweep:
    """Load a sweep: the path of a Python file, or the name of a bundled sweep. InputError."""
    return config_files.load(name, FILE, Sweep, check)


def check(sweep: Sweep) -> Sweep:
    """Check a sweep, with its base as a validated RunConfig. Raises InputError."""
    if not isinstance(sweep.base, str | RunConfig):
        raise InputError(f"base must be a RunConfig or the name of a config, got {sweep.base!r}")
    if not (callable(sweep.points) or isinstance(sweep.points, list | tuple)):
        raise InputError(f"points must be a list of dicts of settings, got {sweep.points!r}"[:200])
    if bool(sweep.points) == bool(sweep.space):
        raise InputError("a sweep needs either points or a space: give one of them")
    if sweep.sampler not in SAMPLERS:
        raise InputError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sweep.sampler!r}")
    if sweep.objective not in OBJECTIVES:
        raise InputError(f"objective must be {OBJECTIVES[0]}, got {sweep.objective!r}")
    for name, kind in (("trials", int), ("limit", int), ("budget", int | float)):
        value = getattr(sweep, name)
        if value is not None and not (isinstance(value, kind) and value > 0):
            raise InputError(f"{name} must be above 0, got {value!r}")
    for name, span in sweep.space.items():
        if not isinstance(span, Uniform | Integers | Choice):
            raise InputError(
                f"{name}: a space needs a range such as uniform(0.6, 1.0), got {span!r}"
            )
        _known(name)
    base = config.load(sweep.base) if isinstance(sweep.base, str) else sweep.base
    if sweep.model:
        base = dataclasses.replace(base, model=sweep.model)
    if sweep.calibration:
        base = checks.put(base, "calibration.data", sweep.calibration)
    base = config.check(dataclasses.replace(base, out=""))
    if base.global_pass.epochs:
        raise InputError("a sweep has no global pass: leave out global_pass.epochs")
    for name, given, want in (("base", base.model, "a model"), ("data", sweep.data, "a text")):
        if not given:
            raise InputError(f"the sweep's {name} is missing {want}: set it in the sweep file")
    return dataclasses.replace(sweep, base=base)


def _known(name: str) -> None:
    settings = checks.flat(RunConfig())
    if name.startswith("global_pass."):
        raise InputError(f"{name} is not for sweeps, which have no global pass: leave it out")
    if name in FIXED or name.startswith("memory."):
        raise InputError(f"{name} is the same for all points: set it in the sweep's base")
    if name not in settings:
        raise InputError(f"{name!r} is not a setting: use names such as prune.sparsity")


def listed(sweep: Sweep, family: Family) -> list[Point]:
    """The points of a sweep of points. Raises InputError."""
    found = sweep.points(family) if callable(sweep.points) else sweep.points
    rows = list(found)
    for row in rows:
        if not isinstance(row, Mapping):
            raise InputError(f"a point must be a dict of settings, got {row!r}"[:200])
    if not rows:
        raise InputError("the sweep has no points: give at least one")
    return rows


def at(base: RunConfig, point: Point) -> RunConfig:
    """The settings of one point. Raises InputError with the point.

    Another method or pattern than the base's resets alpha, beta and rearrange, and the settings
    that it does not use, as `--config` does.
    """
    try:
        for name in point:
            _known(name)
        method, pattern = point.get("prune.method"), point.get("prune.pattern")
        known = config.check(
            dataclasses.replace(
                RunConfig(), prune=config.PruneConfig(method=method or "icp", pattern=pattern)
            )
        )
        run = config.rechosen(base, method and known.prune.method, pattern)
        for name, value in point.items():
            run = checks.put(run, name, value)
        return config.check(run)
    except InputError as error:
        raise InputError(f"point {said(point)}: {error}") from None


def said(point: Point) -> str:
    """A point in one line."""
    text = ", ".join(f"{name} {value}" for name, value in point.items()) or "of the base"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
