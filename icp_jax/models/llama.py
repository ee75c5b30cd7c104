"""Llama, Mistral, Qwen2 and Qwen3: one embed, block and head; the differences are config.

After `modeling_llama.py` and its relatives of transformers. What a config leaves out means what
it means there: `converters.llama.with_defaults`, shared with the table of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from converters.llama import has_mlp_bias, has_o_bias, has_qk_norm, has_qkv_bias, with_defaults
from icp_jax.arrays import AnyArray
from icp_jax.errors import InputError
from icp_jax.models.fields import check_fields
from icp_jax.models.layers import ACTIVATIONS, WHOLE, Linear, RMSNorm, causal_attention
from icp_jax.models.rotary import Rope, cos_sin, rotate
from icp_jax.models.spec import Family, LinearSpec, rearrangements

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
# What one type reads and another does not look at.
OWN_FIELDS = {
    "llama": {"attention_bias": "flag", "mlp_bias": "flag"},
    "mistral": {"sliding_window": "size?"},
    "qwen2": QWEN,
    "qwen3": {**QWEN, "attention_bias": "flag", "head_dim": "size"},
}


def _check(config: Mapping[str, Any]) -> None:
    """Raises InputError for a value that the config's type cannot take."""
    check_fields(config, FIELDS | OWN_FIELDS[config["model_type"]])
    if config.get("use_sliding_window") and config["model_type"] in ("qwen2", "qwen3"):
        check_fields(config, {"sliding_window": "size?"})


@dataclass(frozen=True)
class LlamaConfig:
    """What of `config.json` the computation needs; the names are Hugging Face's."""

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
        """From a `config.json` as a dict. Raises InputError for what cannot be computed."""
        _check(config)
        c = with_defaults(config)
        if c["hidden_act"] not in ACTIVATIONS:
            raise InputError(
                f"hidden_act {c['hidden_act']!r} is not supported; one of {', '.join(ACTIVATIONS)}"
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
    """The sliding window of every block; None: the block sees all earlier tokens."""
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
        raise InputError(f"layer_types must be {n} of {' and '.join(known)}, got {kinds}")
    if "sliding_attention" in kinds and window is None:
        raise InputError("layer_types has sliding_attention, but no sliding window is in use")
    return [known[kind] for kind in kinds]


class Embed(nn.Module):
    """Tokens `[b, t]` to hidden states `[b, t, D]` float32; positions enter in the blocks."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, tokens: Int[AnyArray, "b t"]) -> Float[Array, "b t d"]:
        c = self.config
        return nn.Embed(c.vocab_size, c.hidden_size, jnp.float32, name="tokens")(tokens)


class Block(nn.Module):
    """One decoder layer, `[b, t, D]` to `[b, t, D]`, with the inputs of its linears as taps."""

    config: LlamaConfig
    window: int | None = None
    remat: bool = False  # see causal_attention

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b t d"]) -> Float[Array, "b t d"]:
        c = self.config
        (b, t, _), d = x.shape, c.head_dim

        def norm(name, y, apart=False):
            return RMSNorm(c.rms_norm_eps, name=name)(y, apart)

        def linear(name, features, y, bias, after=WHOLE):
            return Linear(features, use_bias=bias, name=name)(y, after)

        y, after = norm("input_layernorm", x, apart=True)
        self.sow("taps", "qkv_in", after(y))
        q, k, v = (
            linear(name, heads * d, y, c.qkv_bias, after).reshape(b, t, heads, d)
            for name, heads in (
                ("q_proj", c.num_attention_heads),
                ("k_proj", c.num_key_value_heads),
                ("v_proj", c.num_key_value_heads),
            )
        )
        if c.qk_norm:
            q, k = norm("q_norm", q), norm("k_norm", k)
        angles = cos_sin(c.rope, t)
        q, k = rotate(q, *angles), rotate(k, *angles)
        y = causal_attention(q, k, v, d**-0.5, self.window, self.remat).reshape(b, t, -1)
        self.sow("taps", "o_in", y)
        x = x + linear("o_proj", c.hidden_size, y, c.o_bias)

        y = norm("post_attention_layernorm", x)
        self.sow("taps", "gate_up_in", y)
        gate = ACTIVATIONS[c.hidden_act](linear("gate_proj", c.intermediate_size, y, c.mlp_bias))
        y = gate * linear("up_proj", c.intermediate_size, y, c.mlp_bias)
        self.sow("taps", "down_in", y)
        return x + linear("down_proj", c.hidden_size, y, c.mlp_bias)


class Head(nn.Module):
    """Hidden states to logits. embedding: the tied `[V, D]` table, or None for an own kernel."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "*b d"], embedding: Float[AnyArray, "v d"] | None
    ) -> Float[AnyArray, "*b v"]:
        x = RMSNorm(self.config.rms_norm_eps, name="norm")(x)
        if embedding is not None:
            return x @ embedding.T.astype(x.dtype)
        return Linear(self.config.vocab_size, use_bias=False, name="lm_head")(x)


def make(hf_config: Mapping[str, Any]) -> Family:
    """The family of one `config.json`; its model_type is one of converters.llama.TABLES."""
    config = LlamaConfig.from_hf(hf_config)
    by_block = windows(hf_config)
    blocks = {window: Block(config, window) for window in by_block}
    usual = blocks[by_block[0]]
    return Family(
        name=hf_config["model_type"],
        n_blocks=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        context=config.rope.max_position_embeddings,
        tied=config.tied,
        embed=Embed(config),
        block=usual,
        head=Head(config),
        linears=(
            LinearSpec("q_proj", tap="qkv_in", role="q"),
            LinearSpec("k_proj", tap="qkv_in", role="k"),
            LinearSpec("v_proj", tap="qkv_in", role="v"),
            LinearSpec("o_proj", tap="o_in", role="o"),
            LinearSpec("gate_proj", tap="gate_up_in", role="g"),
            LinearSpec("up_proj", tap="gate_up_in", role="u"),
            LinearSpec("down_proj", tap="down_in", role="d"),
        ),
        rearrangements=rearrangements(
            "qkvogud",
            "qkvogu-d qkvo-d qkv-d qkvo-gud qkv-ogud qkvo-gu qkv-gu qkv-o qkv-ogu qkv-od",
        ),
        variants=tuple(
            (t, blocks[window]) for t, window in enumerate(by_block) if blocks[window] is not usual
        ),
    )
