"""The points of a sweep: lists made of settings, and ranges for a search."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from icp_jax.errors import InputError


@dataclass(frozen=True)
class Uniform:
    """Real numbers from low to high. log: uniform in the logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Integers:
    """Whole numbers from low to high, both included."""

    low: int
    high: int


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]


Range = Uniform | Integers | Choice


def uniform(low: float, high: float) -> Uniform:
    """A real number from low to high."""
    return _ordered(Uniform(low, high))


def log_uniform(low: float, high: float) -> Uniform:
    """A positive number from low to high, uniform in its logarithm."""
    if low <= 0:
        raise InputError(f"log_uniform needs a positive lower bound, got {low:g}")
    return _ordered(Uniform(low, high, log=True))


def integers(low: int, high: int) -> Integers:
    """A whole number from low to high, both included."""
    return _ordered(Integers(low, high))


def choice(*values: Any) -> Choice:
    """One of these values."""
    if not values:
        raise InputError("choice() has no values: give at least one")
    return Choice(values)


def _ordered(found: Any) -> Any:
    if not found.low < found.high:
        raise InputError(f"the lower bound must be below the upper, got {found.low}, {found.high}")
    return found


def grid(settings: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of the values: the last setting changes fastest."""
    columns = [[(name, value) for value in _several(name, settings[name])] for name in settings]
    return [dict(row) for row in itertools.product(*columns)] if columns else []


def points(settings: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The first values of all settings, then the second ones, and so on.

    Raises InputError if a setting has more values than another.
    """
    columns = {name: _several(name, values) for name, values in settings.items()}
    if len(lengths := {len(values) for values in columns.values()}) > 1:
        raise InputError(
            f"points() needs as many values of every setting, got {sorted(lengths)}: "
            "use grid() for all combinations"
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _several(name: str, values: Any) -> list[Any]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise InputError(f"{name}: give a list of values, got {values!r}")
    return list(values)
