"""Validation of settings: types, ranges, and conflicts between them."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
import re
import reprlib
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from icp_jax.errors import InputError
from icp_jax.settings import RunConfig

T = TypeVar("T")

COMPENSATING, RETUNING = ("icp", "icp+"), ("icp+",)
WALKING = (*COMPENSATING, "sparsegpt")
SOLVERS = (*COMPENSATING, "alps", "sparsegpt")
# Settings that only some methods use.
USED_BY = {
    "prune.solver": COMPENSATING,
    "prune.damping": SOLVERS,
    "prune.block_size": WALKING,
    "compensate.epochs": COMPENSATING,
    "compensate.lr": COMPENSATING,
    "compensate.gamma": COMPENSATING,
    "retune.steps": RETUNING,
    "retune.epochs": RETUNING,
    "retune.lr": RETUNING,
    "retune.gamma": RETUNING,
    "seed": COMPENSATING,
    "memory.remat": COMPENSATING,
}
GLOBAL = ("global_pass.lr", "global_pass.batch")  # used with global_pass.epochs
# Values that only turn off a step; every method accepts them.
OFF = (("compensate.epochs", 0), ("retune.epochs", 0), ("memory.remat", False))
UNSTRUCTURED = tuple(
    f"prune.{name}" for name in ("sparsity", "alpha", "beta", "rearrange", "sparsity_of")
)

LEAST = {
    "prune.block_size": 1,
    "prune.keep_first": 0,
    "prune.keep_last": 0,
    "compensate.epochs": 0,
    "retune.steps": 1,
    "retune.epochs": 0,
    "global_pass.epochs": 0,
    "global_pass.batch": 1,
    "calibration.samples": 1,
    "calibration.seq_len": 2,
    "calibration.seed": 0,
    "memory.batch_tokens": 1,
    "seed": 0,
    "devices": 1,
    "seq_len": 2,
    "limit": 1,
}
MOST = 2**31 - 1  # largest count; seeds may be larger
TINY, HUGE = 2.0**-126, 2.0**128  # range of normal float32 numbers
OTHERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "prune.sparsity": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "prune.alpha": (lambda v: v >= 0, "at least 0, and finite"),
    "prune.beta": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "prune.damping": (lambda v: v >= TINY, "a positive number"),
    "compensate.lr": (lambda v: v >= TINY, "a positive number"),
    "compensate.gamma": (lambda v: v >= TINY, "a positive number"),
    "retune.lr": (lambda v: v >= TINY, "a positive number"),
    "retune.gamma": (lambda v: v >= TINY, "a positive number"),
    "global_pass.lr": (lambda v: v >= TINY, "a positive number"),
    "quant.bits": (lambda v: 2 <= v <= 8, "from 2 to 8"),
    "quant.group": (lambda v: v in (32, 64, 128), "32, 64 or 128"),
}
UNITS = {"": 1, "b": 1}
UNITS |= {f"{p}ib": 1024**k for k, p in enumerate("kmgt", 1)}
UNITS |= {f"{p}b": 1000**k for k, p in enumerate("kmgt", 1)}


def plain(kind: type[T], value: Any, name: str = "") -> T:
    """Copy a dataclass with its fields converted to plain Python values of the declared types.

    NumPy and JAX scalars become Python numbers, paths become strings, and integers are accepted as
    floats. One text, or texts with commas between, is accepted as a tuple of texts. A bool is not
    accepted as a number. name: prefix of the field names in messages. Raises InputError.
    """
    if not isinstance(value, kind):
        raise InputError(
            f"{name or 'the config'} must be a {kind.__name__}, got {reprlib.repr(value)}"
        )
    hints, found = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        inner = f"{name}.{field.name}" if name else field.name
        found[field.name] = _field(hints[field.name], getattr(value, field.name), inner)
    return kind(**found)


def _field(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return plain(hint, value, name)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        return _texts(value, name)
    options = get_args(hint)
    if get_origin(hint) is not Literal and NoneType in options:
        if value is None:
            return None
        (hint,) = (option for option in options if option is not NoneType)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if (found := _scalar(hint, value)) is None:
        raise InputError(f"{name} must be {_expected(hint)}, got {reprlib.repr(value)}")
    return found


def _texts(value: Any, name: str) -> tuple[str, ...]:
    rows = [value] if isinstance(value, str) else value
    if not isinstance(rows, list | tuple) or not all(isinstance(row, str) for row in rows):
        raise InputError(f"{name} must be a text or a list of texts, got {reprlib.repr(value)}")
    return tuple(part.strip() for row in rows for part in row.split(",") if part.strip())


def _scalar(hint: Any, value: Any) -> Any:
    """Convert `value` to the type `hint`; None if the types do not match."""
    if get_origin(hint) is Literal:
        return str(value) if isinstance(value, str) and value in get_args(hint) else None
    if hint is bool or isinstance(value, bool):
        return value if hint is bool and isinstance(value, bool) else None
    if hint is int:
        return int(value) if isinstance(value, numbers.Integral) else None
    if hint is float:
        return _float(value) if isinstance(value, numbers.Real) else None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return str(value) if isinstance(value, str) and "\0" not in value else None


def _float(value: numbers.Real) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


def _expected(hint: Any) -> str:
    if get_origin(hint) is Literal:
        *first, last = get_args(hint)
        return f"{', '.join(first)} or {last}"
    return {bool: "True or False", int: "an integer", float: "a number"}.get(hint, "text")


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """All settings as a flat dict with dotted names."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        inner = flat(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
        found |= inner
    return found


def put(run: RunConfig, name: str, value: Any) -> RunConfig:
    """Replace one setting, given by its dotted name."""
    part, _, rest = name.partition(".")
    inner = dataclasses.replace(getattr(run, part), **{rest: value}) if rest else value
    return dataclasses.replace(run, **{part: inner})


def ranges(config: Any) -> None:
    """Raise InputError for a setting out of range. Unset settings are skipped."""
    for name, value in flat(config).items():
        if value is None:
            continue
        least = LEAST.get(name, -math.inf)
        holds, said = OTHERS.get(name, (lambda v, least=least: v >= least, f"at least {least}"))
        if isinstance(value, float):
            if not (holds(value) and value < HUGE):
                raise InputError(f"{name} must be {said}, got {value:g}")
        elif isinstance(value, int) and not holds(value):
            raise InputError(f"{name} must be {said}, got {value}")
        elif isinstance(value, int) and value > MOST and not name.endswith("seed"):
            raise InputError(f"{name} must be at most {MOST}, got {value}")


def idle(run: RunConfig) -> list[str]:
    """Settings that are set but not used by the run's method or pattern.

    Raises InputError for an invalid pattern.
    """
    from icp_jax.core.masks import parse_pattern

    found, settings = [], flat(run)
    for name, methods in USED_BY.items():
        value = settings[name]
        if name == "seed" and run.global_pass.epochs:
            continue
        if run.prune.method not in methods and value is not None and (name, value) not in OFF:
            found.append(name)
    if not run.global_pass.epochs:
        found += [name for name in GLOBAL if settings[name] is not None]
    if run.prune.solver == "alps" and run.prune.block_size is not None:
        found.append("prune.block_size")
    if parse_pattern(run.prune.pattern) is not None:
        found += [name for name in UNSTRUCTURED if settings[name] not in (None, (), [])]
    return found


def sensible(run: RunConfig) -> None:
    """Raise InputError for settings that conflict or would be ignored."""
    from icp_jax.core.choice import parse_own

    parse_bytes("memory.device", run.memory.device)
    parse_bytes("memory.host", run.memory.host)
    if run.quant.bits is None and run.quant != type(run.quant)():
        raise InputError("quant settings need quant.bits: set it, such as 4")
    if run.quant.bits is not None and run.prune.method in RETUNING and run.retune.epochs != 0:
        raise InputError(
            "quant.bits does not go with icp+, whose re-tune would move the weights off their "
            "grid: choose icp, or retune.epochs 0"
        )
    if run.quant.bits is not None and run.global_pass.epochs:
        raise InputError(
            "quant.bits does not go with global_pass.epochs: the global pass would move the "
            "weights off their grid; leave one of them out"
        )
    if run.prune.solver == "alps" and run.prune.block_size is not None:
        raise InputError("prune.block_size does not apply to prune.solver alps: leave it out")
    if run.prune.solver == "alps" and run.quant.bits is not None:
        raise InputError(
            "quant.bits does not go with prune.solver alps, which does not repair the rounding: "
            "leave one of them out"
        )
    for text in run.prune.sparsity_of:
        parse_own(text)
    unused = idle(run)
    if unused and unused[0] in USED_BY:
        methods = USED_BY[unused[0]]
        raise InputError(
            f"{unused[0]} applies to {_listed(methods)} only, not to {run.prune.method}: "
            "leave it out"
        )
    if unused and unused[0] in GLOBAL:
        raise InputError(f"{unused[0]} needs global_pass.epochs: set it, such as 1")
    if unused:
        names = f"{' and '.join(unused)} {'apply' if unused[1:] else 'applies'}"
        them = "them" if unused[1:] else "it"
        raise InputError(
            f"{names} to unstructured pruning only: leave {them} out, or prune.pattern"
        )


def _listed(names: Sequence[str]) -> str:
    """Names in words, such as `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def parse_bytes(name: str, text: str) -> int | None:
    """Parse a size such as `8GiB` into bytes; None if empty. Raises InputError."""
    if not text:
        return None
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([kmgt]?i?b?)", text.strip().lower())
    count = int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    if not count:
        raise InputError(f"{name} must be a size such as 8GiB or 500MB, got {reprlib.repr(text)}")
    return count
