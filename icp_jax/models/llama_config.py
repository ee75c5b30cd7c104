"""The config of Llama and its relatives: check the fields and fill in the missing ones.

Defaults are those of transformers, from `converters.llama.with_defaults`, which the weight tables
use too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converters.llama import has_mlp_bias, has_o_bias, has_qk_norm, has_qkv_bias, with_defaults
from icp_jax.errors import InputError
from icp_jax.models.fields import check_fields
from icp_jax.models.layers import ACTIVATIONS
from icp_jax.models.rotary import Rope

FIELDS = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), "size"),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), "size"),
    "max_position_embeddings": "size",
    "num_key_value_heads": "size?",
    "head_dim": "size?",
    "hidden_act": "word",
    "rms_norm_eps": "number",
    "tie_word_embeddings": "flag",
}
QWEN = {"use_sliding_window": "flag", "max_window_layers": "count", "layer_types": "words?"}
# Fields that only some model types read.
OWN_FIELDS = {
    "llama": {"attention_bias": "flag", "mlp_bias": "flag"},
    "mistral": {"sliding_window": "size?"},
    "qwen2": QWEN,
    "qwen3": {**QWEN, "attention_bias": "flag", "head_dim": "size"},
}


def _check(config: Mapping[str, Any]) -> None:
    """Raise InputError for a field of the wrong kind."""
    check_fields(config, FIELDS | OWN_FIELDS[config["model_type"]])
    if config.get("use_sliding_window") and config["model_type"] in ("qwen2", "qwen3"):
        check_fields(config, {"sliding_window": "size?"})


@dataclass(frozen=True)
class LlamaConfig:
    """The fields of `config.json` that the computation needs, by their Hugging Face names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str
    rope: Rope
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Read a `config.json` dict. Raises InputError for unsupported settings."""
        _check(config)
        c = with_defaults(config)
        if c["hidden_act"] not in ACTIVATIONS:
            raise InputError(
                f"hidden_act {c['hidden_act']!r} is not supported; "
                f"supported: {', '.join(ACTIVATIONS)}"
            )
        heads = c["num_attention_heads"]
        if config.get("head_dim") is None and c["hidden_size"] % heads:
            raise InputError(
                f"hidden_size {c['hidden_size']} is not a multiple of num_attention_heads {heads}"
            )
        if heads % c["num_key_value_heads"]:
            raise InputError(
                f"num_attention_heads {heads} is not a multiple of "
                f"num_key_value_heads {c['num_key_value_heads']}"
            )
        return cls(
            vocab_size=c["vocab_size"],
            hidden_size=c["hidden_size"],
            intermediate_size=c["intermediate_size"],
            num_hidden_layers=c["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=c["num_key_value_heads"],
            head_dim=c["head_dim"],
            rms_norm_eps=c["rms_norm_eps"],
            hidden_act=c["hidden_act"],
            rope=Rope.from_hf(c, c["head_dim"]),
            qkv_bias=has_qkv_bias(c),
            o_bias=has_o_bias(c),
            mlp_bias=has_mlp_bias(c),
            qk_norm=has_qk_norm(c),
            tied=bool(c["tie_word_embeddings"]),
        )


def windows(hf_config: Mapping[str, Any]) -> list[int | None]:
    """The sliding window of each block; None: the block attends to all earlier tokens."""
    c = with_defaults(hf_config)
    n = c["num_hidden_layers"]
    if c["model_type"] == "llama":
        return [None] * n
    if c["model_type"] == "mistral":
        return [c["sliding_window"]] * n
    window = c["sliding_window"] if c["use_sliding_window"] else None
    kinds = c.get("layer_types")
    if kinds is None:
        return [window if t >= c["max_window_layers"] else None for t in range(n)]
    known = {"full_attention": None, "sliding_attention": window}
    if len(kinds) != n or not set(kinds) <= set(known):
        raise InputError(f"layer_types must list {n} of {' and '.join(known)}, got {kinds}")
    if "sliding_attention" in kinds and window is None:
        raise InputError(
            "layer_types has sliding_attention without a sliding window: "
            "set sliding_window and use_sliding_window"
        )
    return [known[kind] for kind in kinds]
