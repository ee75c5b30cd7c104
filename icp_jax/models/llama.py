"""Llama, Mistral, Qwen2 and Qwen3 share one embed, block and head; the config sets the rest.

Follows `modeling_llama.py` and its relatives in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.models import cache
from icp_jax.models.layers import ACTIVATIONS, WHOLE, Linear, RMSNorm
from icp_jax.models.llama_config import LlamaConfig, windows
from icp_jax.models.rotary import cos_sin, rotate
from icp_jax.models.spec import Family, LinearSpec, rearrangements


class Embed(nn.Module):
    """Tokens `[b, t]` to hidden states `[b, t, D]` float32; the blocks apply the positions."""

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
        angles = cos_sin(c.rope, t, cache.positions(self, t))
        q, k = rotate(q, *angles), rotate(k, *angles)
        y = cache.attention(self, q, k, v, d**-0.5, self.window, self.remat).reshape(b, t, -1)
        self.sow("taps", "o_in", y)
        x = x + linear("o_proj", c.hidden_size, y, c.o_bias)

        y = norm("post_attention_layernorm", x)
        self.sow("taps", "gate_up_in", y)
        gate = ACTIVATIONS[c.hidden_act](linear("gate_proj", c.intermediate_size, y, c.mlp_bias))
        y = gate * linear("up_proj", c.intermediate_size, y, c.mlp_bias)
        self.sow("taps", "down_in", y)
        return x + linear("down_proj", c.hidden_size, y, c.mlp_bias)


class Head(nn.Module):
    """Hidden states to logits. embedding: the tied `[V, D]` table; None: the head's own kernel."""

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
    """The family of a `config.json` whose model_type is in `converters.llama.TABLES`."""
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
