"""OPT: embed, block and head. Follows `modeling_opt.py` in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from converters.opt import embedding_width
from icp_jax.arrays import AnyArray
from icp_jax.errors import InputError
from icp_jax.models import cache
from icp_jax.models.fields import check_fields
from icp_jax.models.layers import ACTIVATIONS, WHOLE, LayerNorm, Linear
from icp_jax.models.spec import Family, LinearSpec, rearrangements

FIELDS = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "ffn_dim"), "size"),
    **dict.fromkeys(("num_attention_heads", "max_position_embeddings"), "size"),
    "word_embed_proj_dim": "size?",
    "activation_function": "word",
    **dict.fromkeys(("do_layer_norm_before", "_remove_final_layer_norm", "enable_bias"), "flag"),
    **dict.fromkeys(("layer_norm_elementwise_affine", "tie_word_embeddings"), "flag"),
}
POSITION_OFFSET = 2  # OPT's learned positions start at the third row of the table


@dataclass(frozen=True)
class OPTConfig:
    """The fields of `config.json` that the computation needs, by their Hugging Face names."""

    vocab_size: int
    hidden_size: int
    word_embed_proj_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    ffn_dim: int
    max_position_embeddings: int
    activation_function: str = "relu"
    do_layer_norm_before: bool = True
    final_norm: bool = True
    enable_bias: bool = True
    affine: bool = True
    tied: bool = True

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> OPTConfig:
        """Read a `config.json` dict. Raises InputError for unsupported settings."""
        check_fields(config, FIELDS)
        act = config.get("activation_function", "relu")
        if act not in ACTIVATIONS:
            raise InputError(
                f"activation_function {act!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
            )
        if config["hidden_size"] % config["num_attention_heads"]:
            raise InputError(
                f"hidden_size {config['hidden_size']} is not a multiple of "
                f"num_attention_heads {config['num_attention_heads']}"
            )
        pre = config.get("do_layer_norm_before", True)
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            word_embed_proj_dim=embedding_width(config),
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            ffn_dim=config["ffn_dim"],
            max_position_embeddings=config["max_position_embeddings"],
            activation_function=act,
            do_layer_norm_before=pre,
            final_norm=pre and not config.get("_remove_final_layer_norm", False),
            enable_bias=config.get("enable_bias", True),
            affine=config.get("layer_norm_elementwise_affine", True),
            tied=config.get("tie_word_embeddings", True),
        )


class Embed(nn.Module):
    """Tokens `[b, t]` to hidden states `[b, t, D]` float32."""

    config: OPTConfig

    @nn.compact
    def __call__(self, tokens: Int[AnyArray, "b t"]) -> Float[Array, "b t d"]:
        c = self.config
        x = nn.Embed(c.vocab_size, c.word_embed_proj_dim, jnp.float32, name="tokens")(tokens)
        if c.word_embed_proj_dim != c.hidden_size:
            x = Linear(c.hidden_size, use_bias=False, name="project_in")(x)
        rows = c.max_position_embeddings + POSITION_OFFSET
        positions = nn.Embed(rows, c.hidden_size, jnp.float32, name="positions")
        at = cache.positions(self, tokens.shape[1])
        at = jnp.arange(tokens.shape[1]) if at is None else at
        return x + positions(at + POSITION_OFFSET)


class Block(nn.Module):
    """One decoder layer, `[b, t, D]` to `[b, t, D]`, with the inputs of its linears as taps."""

    config: OPTConfig
    remat: bool = False  # see causal_attention

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b t d"]) -> Float[Array, "b t d"]:
        c = self.config
        heads = (c.num_attention_heads, c.hidden_size // c.num_attention_heads)

        def linear(name, features, y, after=WHOLE):
            return Linear(features, use_bias=c.enable_bias, name=name)(y, after)

        attention_norm = LayerNorm(affine=c.affine, name="self_attn_layer_norm")
        mlp_norm = LayerNorm(affine=c.affine, name="final_layer_norm")

        y, after = attention_norm(x, apart=True) if c.do_layer_norm_before else (x, WHOLE)
        self.sow("taps", "qkv_in", after(y))
        q, k, v = (
            linear(name, c.hidden_size, y, after).reshape(*y.shape[:-1], *heads)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        y = cache.attention(self, q, k, v, heads[1] ** -0.5, remat=self.remat).reshape(x.shape)
        self.sow("taps", "out_in", y)
        x = x + linear("out_proj", c.hidden_size, y)
        if not c.do_layer_norm_before:
            x = attention_norm(x)

        y = mlp_norm(x) if c.do_layer_norm_before else x
        self.sow("taps", "fc1_in", y)
        y = ACTIVATIONS[c.activation_function](linear("fc1", c.ffn_dim, y))
        self.sow("taps", "fc2_in", y)
        x = x + linear("fc2", c.hidden_size, y)
        return x if c.do_layer_norm_before else mlp_norm(x)


class Head(nn.Module):
    """Hidden states to logits. embedding: the tied `[V, E]` table; None: the head's own kernel."""

    config: OPTConfig

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "*b d"], embedding: Float[AnyArray, "v e"] | None
    ) -> Float[AnyArray, "*b v"]:
        c = self.config
        if c.final_norm:
            x = LayerNorm(affine=c.affine, name="norm")(x)
        if c.word_embed_proj_dim != c.hidden_size:
            x = Linear(c.word_embed_proj_dim, use_bias=False, name="project_out")(x)
        if embedding is not None:
            return x @ embedding.T.astype(x.dtype)
        return Linear(c.vocab_size, use_bias=False, name="lm_head")(x)


def make(hf_config: Mapping[str, Any]) -> Family:
    """The OPT family for a `config.json`."""
    config = OPTConfig.from_hf(hf_config)
    return Family(
        name="opt",
        n_blocks=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        context=config.max_position_embeddings,
        tied=config.tied,
        embed=Embed(config),
        block=Block(config),
        head=Head(config),
        linears=(
            LinearSpec("q_proj", tap="qkv_in", role="q"),
            LinearSpec("k_proj", tap="qkv_in", role="k"),
            LinearSpec("v_proj", tap="qkv_in", role="v"),
            LinearSpec("out_proj", tap="out_in", role="o"),
            LinearSpec("fc1", tap="fc1_in", role="f1"),
            LinearSpec("fc2", tap="fc2_in", role="f2"),
        ),
        rearrangements=rearrangements(
            ("q", "k", "v", "o", "f1", "f2"),
            "qkvof1-f2 qkvo-f2 qkvo-f1 qkvo-f1f2 qkv-f2 qkv-f1 qkv-o qkv-of1 qkv-of2 qkv-of1f2",
        ),
    )
