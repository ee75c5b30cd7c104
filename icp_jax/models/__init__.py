"""The model registry: `config.json` -> Family. A new model adds one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from icp_jax.errors import InputError
from icp_jax.models import llama, opt, sam
from icp_jax.models.spec import Family, LinearSpec, Rearrangement

FAMILIES: dict[str, Callable[[Mapping[str, Any]], Family]] = {
    "opt": opt.make,
    "llama": llama.make,
    "mistral": llama.make,
    "qwen2": llama.make,
    "qwen3": llama.make,
    "sam": sam.make,
}

# Signs of a mixture of experts when the model type does not contain `moe`.
EXPERT_TYPES = ("mixtral", "dbrx", "llama4", "jamba", "switch_transformers")
EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")

__all__ = ["FAMILIES", "Family", "LinearSpec", "Rearrangement", "make_family"]


def make_family(config: Mapping[str, Any]) -> Family:
    """The family of a `config.json` dict. Raises InputError for an unsupported one."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        why = " (mixture of experts)" if _has_experts(config) else ""
        raise InputError(
            f"model type {model_type!r}{why} is not supported; "
            f"supported: {', '.join(sorted(FAMILIES))}"
        )
    try:
        return FAMILIES[model_type](config)
    except KeyError as error:
        raise InputError(f"config.json has no {error.args[0]!r}: add it") from None


def _has_experts(config: Mapping[str, Any]) -> bool:
    name = str(config.get("model_type"))
    named = "moe" in name or name in EXPERT_TYPES
    return named or any(config.get(key) for key in EXPERT_KEYS)
