"""SAM's mask decoder: tokens and image attend to each other, then the tokens predict masks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icp_jax.arrays import AnyArray
from icp_jax.models.attention import softmax_matmul
from icp_jax.models.layers import ACTIVATIONS, LayerNorm, Linear
from icp_jax.models.sam.config import DecoderConfig
from icp_jax.models.sam.layers import NORM_EPS, Perceptron, Table, Upscale

FINAL_NORM_EPS = 1e-5  # the one norm that keeps torch's default


class Attention(nn.Module):
    """Attention with `hidden_size // rate` channels. p may be 1 if all prompts share an array."""

    config: DecoderConfig
    rate: int

    @nn.compact
    def __call__(
        self,
        query: Float[AnyArray, "b #p q c"],
        key: Float[AnyArray, "b #p k c"],
        value: Float[AnyArray, "b #p k c"],
    ) -> Float[Array, "b #p q c"]:
        c = self.config
        width, heads = c.hidden_size // self.rate, c.num_attention_heads

        def split(name, x):  # [b, p, n, t, d]
            x = Linear(width, name=name)(x)
            return jnp.swapaxes(x.reshape(*x.shape[:-1], heads, width // heads), 2, 3)

        q, k, v = split("q_proj", query), split("k_proj", key), split("v_proj", value)
        scale = np.float32((width // heads) ** -0.5).astype(q.dtype)
        scores = jnp.matmul(q * scale, jnp.swapaxes(k, 3, 4), preferred_element_type=jnp.float32)
        out = softmax_matmul(scores, v)
        out = jnp.swapaxes(out, 2, 3)
        return Linear(c.hidden_size, name="out_proj")(out.reshape(*out.shape[:-2], width))


class TwoWay(nn.Module):
    """One layer: token self-attention, tokens to image, an MLP, image to tokens.

    first: self-attention adds no positions and no residual.
    """

    config: DecoderConfig
    first: bool

    @nn.compact
    def __call__(
        self,
        tokens: Float[AnyArray, "b p t c"],
        image: Float[AnyArray, "b #p s c"],
        token_positions: Float[AnyArray, "b p t c"],
        image_positions: Float[AnyArray, "s c"],
    ) -> tuple[Float[Array, "b p t c"], Float[Array, "b p s c"]]:
        c = self.config

        def norm(k, x):
            return LayerNorm(c.layer_norm_eps, name=f"layer_norm{k}")(x)

        placed = tokens if self.first else tokens + token_positions
        out = Attention(c, 1, name="self_attn")(placed, placed, tokens)
        tokens = norm(1, out if self.first else tokens + out)

        attend = Attention(c, c.attention_downsample_rate, name="cross_attn_token_to_image")
        out = attend(tokens + token_positions, image + image_positions, image)
        tokens = norm(2, tokens + out)

        out = ACTIVATIONS[c.hidden_act](Linear(c.mlp_dim, name="lin1")(tokens))
        tokens = norm(3, tokens + Linear(c.hidden_size, name="lin2")(out))

        attend = Attention(c, c.attention_downsample_rate, name="cross_attn_image_to_token")
        out = attend(image + image_positions, tokens + token_positions, tokens)
        return tokens, norm(4, image + out)


class MaskDecoder(nn.Module):
    """Image embedding and prompts to (mask logits `[b, p, m, 4g, 4g]`, IoU scores `[b, p, m]`).

    m: `num_multimask_outputs` with `multimask`, else 1.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        image: Float[AnyArray, "b g g c"],
        image_positions: Float[AnyArray, "g g c"],
        sparse: Float[AnyArray, "b p t c"] | None,
        dense: Float[AnyArray, "#b #p g g c"],
        multimask: bool,
    ) -> tuple[Float[Array, "b p m s s"], Float[Array, "b p m"]]:
        c = self.config
        b, g, _, width = image.shape
        own = [Table((1, width), name="iou_token")(), Table((c.mask_tokens, width), name="masks")()]
        tokens = jnp.concatenate(own).astype(image.dtype)
        if sparse is None:
            tokens = jnp.broadcast_to(tokens, (b, 1, *tokens.shape))
        else:
            tokens = jnp.broadcast_to(tokens, (*sparse.shape[:2], *tokens.shape))
            tokens = jnp.concatenate([tokens, sparse.astype(image.dtype)], axis=2)
        seen = (image[:, None] + dense.astype(image.dtype)).reshape(b, -1, g * g, width)
        positions = image_positions.astype(image.dtype).reshape(g * g, width)

        out = tokens
        for k in range(c.num_hidden_layers):
            out, seen = TwoWay(c, first=k == 0, name=f"layers_{k}")(out, seen, tokens, positions)
        attend = Attention(c, c.attention_downsample_rate, name="final_attn_token_to_image")
        out = out + attend(out + tokens, seen + positions, seen)
        out = LayerNorm(FINAL_NORM_EPS, name="layer_norm_final_attn")(out)

        x = Upscale(width // 4, name="upscale_conv1")(seen.reshape(b, -1, g, g, width))
        x = jax.nn.gelu(LayerNorm(NORM_EPS, name="upscale_layer_norm")(x), approximate=False)
        x = jax.nn.gelu(Upscale(width // 8, name="upscale_conv2")(x), approximate=False)

        widths = (width, width, width // 8)
        filters = [
            Perceptron(widths, name=f"hyper_{k}")(out[:, :, 1 + k]) for k in range(c.mask_tokens)
        ]
        depth = (c.iou_head_hidden_dim,) * (c.iou_head_depth - 1)
        scores = Perceptron((*depth, c.mask_tokens), name="iou_head")(out[:, :, 0])
        chosen = slice(1, None) if multimask else slice(0, 1)
        masks = jnp.einsum("bpmc,bphwc->bpmhw", jnp.stack(filters[chosen], axis=2), x)
        return masks, scores[..., chosen]
