"""SAM's prompt encoder: points, boxes and masks to embeddings, by Fourier features of x and y.

Coordinates are pixels of the model's input, (x, y) from the top left corner.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.models.layers import ACTIVATIONS, LayerNorm
from icp_jax.models.sam.config import PromptConfig
from icp_jax.models.sam.layers import Conv, Table

NOT_A_POINT, IGNORED = -1, -10  # labels; 0: background, 1: foreground


def encode_positions(
    coordinates: Float[AnyArray, "*b 2"], frequencies: Float[AnyArray, "2 f"]
) -> Float[Array, "*b c"]:
    """Sines and cosines of coordinates in [0, 1] at f random frequencies, c = 2f, in float32."""
    frequencies = frequencies.astype(jnp.float32)
    centred = 2 * coordinates.astype(jnp.float32) - 1
    angles = jnp.matmul(centred, frequencies, precision=jax.lax.Precision.HIGHEST)
    angles = np.float32(2 * np.pi) * angles
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def grid_positions(grid: int, frequencies: Float[AnyArray, "2 f"]) -> Float[Array, "g g c"]:
    """Encode the centre of each patch."""
    centres = (np.arange(grid, dtype=np.float32) + np.float32(0.5)) / np.float32(grid)
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return encode_positions(jnp.asarray(np.stack([x, y], axis=-1)), frequencies)


class PromptEncoder(nn.Module):
    """Prompts to (sparse `[b, p, t, C]` or None, dense `[b, 1 or p, g, g, C]`).

    p: prompts per image, each with its own masks.
    """

    config: PromptConfig

    @nn.compact
    def __call__(
        self,
        frequencies: Float[AnyArray, "2 f"],
        points: Float[AnyArray, "b p n 2"] | None,
        labels: Int[AnyArray, "b p n"] | None,
        boxes: Float[AnyArray, "b p 4"] | None,
        masks: Float[AnyArray, "b m s s"] | None,
    ) -> tuple[Float[Array, "b p t c"] | None, Float[Array, "#b #m g g c"]]:
        c = self.config
        table = (1, c.hidden_size)
        kinds = [Table(table, name=f"point_{k}")() for k in range(c.num_point_embeddings)]
        nothing = Table(table, name="not_a_point")()
        no_mask = Table(table, name="no_mask")()
        dense_mask = MaskEmbed(c, name="mask")

        def encode(coordinates):  # shift to the pixel's centre, scale to [0, 1]
            shifted = coordinates.astype(jnp.float32) + 0.5
            return encode_positions(shifted / np.float32(c.image_size), frequencies)

        sparse = []
        if points is not None:
            if labels is None:
                labels = jnp.ones(points.shape[:-1], jnp.int32)
            encoded = encode(points)
            if boxes is None:  # the tokens end with a box, or with a padding token
                encoded = jnp.pad(encoded, ((0, 0), (0, 0), (0, 1), (0, 0)))
                labels = jnp.pad(labels, ((0, 0), (0, 0), (0, 1)), constant_values=NOT_A_POINT)
            kind = labels[..., None]
            encoded = jnp.where(kind == NOT_A_POINT, nothing, encoded)
            encoded = jnp.where(kind == IGNORED, jnp.zeros_like(encoded), encoded)
            encoded = jnp.where(kind == 0, encoded + kinds[0], encoded)
            sparse.append(jnp.where(kind == 1, encoded + kinds[1], encoded))
        if boxes is not None:
            corners = encode(boxes.reshape(*boxes.shape[:-1], 2, 2))
            sparse.append(corners + jnp.concatenate(kinds[2:4]))
        if masks is not None:
            b, m, s, _ = masks.shape
            dense = dense_mask(masks.reshape(b * m, s, s, 1))
            dense = dense.reshape(b, m, *dense.shape[1:])
        else:
            dense = jnp.broadcast_to(no_mask, (1, 1, c.grid, c.grid, c.hidden_size))
            if self.is_initializing():
                dense_mask(jnp.zeros((1, 4 * c.grid, 4 * c.grid, 1), jnp.float32))
        return (jnp.concatenate(sparse, axis=2) if sparse else None), dense


class MaskEmbed(nn.Module):
    """Mask logits `[b, 4g, 4g, 1]` to `[b, g, g, C]`."""

    config: PromptConfig

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b s s 1"]) -> Float[Array, "b g g c"]:
        c = self.config
        act = ACTIVATIONS[c.hidden_act]
        x = Conv(c.mask_input_channels // 4, 2, 2, name="conv1")(x)
        x = act(LayerNorm(c.layer_norm_eps, name="layer_norm1")(x))
        x = Conv(c.mask_input_channels, 2, 2, name="conv2")(x)
        x = act(LayerNorm(c.layer_norm_eps, name="layer_norm2")(x))
        return Conv(c.hidden_size, 1, 1, name="conv3")(x)
