"""SAM's image encoder: embed, block and neck on `[N, H, W, D]` streams.

Windowed blocks attend within windows of `window_size` patches per side, global blocks to all
patches. The linears run on the unpadded grid. Padded positions of a window hold the bias of `qkv`,
its output for zeros, and their attention output is dropped before `proj`.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from icp_jax.arrays import AnyArray
from icp_jax.models.layers import ACTIVATIONS, LayerNorm, Linear
from icp_jax.models.sam.attention import attention, partition, unpartition
from icp_jax.models.sam.config import VisionConfig
from icp_jax.models.sam.layers import NORM_EPS, Conv, Table


class Embed(nn.Module):
    """Normalised, padded pixels `[b, 3, S, S]` (channels first) to `[b, H, W, D]`."""

    config: VisionConfig

    @nn.compact
    def __call__(self, pixel_values: Float[AnyArray, "b c s s"]) -> Float[Array, "b h w d"]:
        c = self.config
        pixels = jnp.moveaxis(pixel_values, 1, -1)
        x = Conv(c.hidden_size, c.patch_size, c.patch_size, name="patch")(pixels)
        if c.use_abs_pos:
            positions = Table((1, c.grid, c.grid, c.hidden_size), name="positions")()
            x = x + positions.astype(x.dtype)
        return x


class Block(nn.Module):
    """One encoder layer, `[b, H, W, D]` to `[b, H, W, D]`, with the inputs of its linears as taps.

    window: patches per side; 0 for global attention.
    """

    config: VisionConfig
    window: int

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b h w d"]) -> Float[Array, "b h w d"]:
        c = self.config
        y = LayerNorm(c.layer_norm_eps, name="layer_norm1")(x)
        self.sow("taps", "qkv_in", y)
        y = self._attend(y)
        self.sow("taps", "proj_in", y)
        x = x + Linear(c.hidden_size, name="proj")(y)

        y = LayerNorm(c.layer_norm_eps, name="layer_norm2")(x)
        self.sow("taps", "lin1_in", y)
        y = ACTIVATIONS[c.hidden_act](Linear(c.mlp_width, name="lin1")(y))
        self.sow("taps", "lin2_in", y)
        return x + Linear(c.hidden_size, name="lin2")(y)

    def _attend(self, y: Float[AnyArray, "b h w d"]) -> Float[Array, "b h w d"]:
        c = self.config
        _, h, w, width = y.shape
        heads = (c.num_attention_heads, width // c.num_attention_heads)
        project = Linear(3 * width, use_bias=c.qkv_bias, name="qkv")
        qkv = project(y)
        if self.window:
            qkv = partition(qkv, self.window, fill=project(jnp.zeros((width,), y.dtype)))
        q, k, v = jnp.moveaxis(qkv.reshape(*qkv.shape[:-1], 3, *heads), -3, 0)
        tables: tuple[Array, ...] = ()
        if c.use_rel_pos:
            shape = (2 * (self.window or c.grid) - 1, heads[1])
            tables = (Table(shape, name="rel_pos_h")(), Table(shape, name="rel_pos_w")())
        out = attention(q, k, v, *tables)
        out = out.reshape(*out.shape[:-2], width)
        return unpartition(out, h, w) if self.window else out


class Neck(nn.Module):
    """The encoder's head: `[b, H, W, D]` to the image embedding `[b, H, W, output_channels]`."""

    config: VisionConfig

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "b h w d"], table: None = None
    ) -> Float[Array, "b h w c"]:
        channels = self.config.output_channels
        x = Conv(channels, 1, 1, use_bias=False, name="conv1")(x)
        x = LayerNorm(NORM_EPS, name="layer_norm1")(x)
        x = Conv(channels, 3, 1, use_bias=False, name="conv2")(x)
        return LayerNorm(NORM_EPS, name="layer_norm2")(x)
