"""Type checks of the fields of a `config.json`, before anything is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from icp_jax.errors import InputError


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return _integer(value) or isinstance(value, float)


def _list_of(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(good, value))


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "size": ("a positive integer", lambda value: _integer(value) and value > 0),
    "count": ("an integer of at least 0", lambda value: _integer(value) and value >= 0),
    "number": ("a positive number", lambda value: _number(value) and 0 < value < float("inf")),
    "flag": ("true or false", lambda value: isinstance(value, bool)),
    "word": ("a string", lambda value: isinstance(value, str)),
    "words": ("a list of strings", _list_of(lambda value: isinstance(value, str))),
    "counts": ("a list of integers", _list_of(_integer)),
    "object": ("an object", lambda value: isinstance(value, Mapping)),
}


def check_fields(config: Mapping[str, Any], kinds: Mapping[str, str], where: str = "") -> None:
    """Raise InputError, naming the key, for a value of the wrong kind.

    kinds: key -> one of KINDS; a trailing `?` also allows null, which means the same as a missing
    key. Missing keys are not checked. where: prefix of the key, such as `vision_config.`.
    """
    for key, kind in kinds.items():
        value = config.get(key)
        if key not in config or (value is None and kind.endswith("?")):
            continue
        words, good = KINDS[kind.rstrip("?")]
        if not good(value):
            shown = "null" if value is None else repr(value)[:60]
            null = " or null" if kind.endswith("?") else ""
            raise InputError(f"config.json: {where}{key} must be {words}{null}, got {shown}")
