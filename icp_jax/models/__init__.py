"""The registry: `config.json` -> Family. Adding a model adds one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from icp_jax.errors import InputError
from icp_jax.models import opt
from icp_jax.models.spec import Family, LinearSpec, Rearrangement

FAMILIES: dict[str, Callable[[Mapping[str, Any]], Family]] = {
    "opt": opt.make,
}

__all__ = ["FAMILIES", "Family", "LinearSpec", "Rearrangement", "make_family"]


def make_family(config: Mapping[str, Any]) -> Family:
    """The family of a `config.json` dict. Raises InputError, with the list, for an unknown one."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise InputError(
            f"model type {model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    try:
        return FAMILIES[model_type](config)
    except KeyError as error:
        raise InputError(f"config.json has no {error.args[0]!r}") from None
