"""Image layers, channels last: convolutions with 2-D kernels, tables, small perceptrons.

Every kernel is `[in, out]`. Rows of a convolution's kernel are ordered (channel, row, column): fold
the last three axes of a torch weight `[out, in, k, k]` and transpose.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icp_jax.arrays import AnyArray
from icp_jax.models.layers import Linear

NORM_EPS = 1e-6  # of SAM's norms over channels, not configurable


class Conv(nn.Module):
    """A convolution `[b, H, W, c]` to `[b, H', W', features]`.

    kernel: `[c * size * size, features]`. stride: `size`, for non-overlapping patches by one
    matrix product; or 1, padded with zeros so that H' = H.
    """

    features: int
    size: int
    stride: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b h w c"]) -> Float[Array, "b i j o"]:
        (b, h, w, c), s = x.shape, self.size
        kernel = self.param(
            "kernel", nn.initializers.normal(0.02), (c * s * s, self.features), jnp.float32
        ).astype(x.dtype)
        if self.stride == s:
            x = x.reshape(b, h // s, s, w // s, s, c).transpose(0, 1, 3, 5, 2, 4)
            y = x.reshape(b, h // s, w // s, c * s * s) @ kernel
        else:
            kernel = kernel.reshape(c, s, s, self.features)
            y = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "IHWO", "NHWC")
            )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(x.dtype)
        return y


class Upscale(nn.Module):
    """A transposed convolution of size and stride 2: `[..., H, W, c]` to `[..., 2H, 2W, features]`.

    kernel: `[c, features * 2 * 2]`, columns ordered (feature, row, column).
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*b h w c"]) -> Float[Array, "*b i j o"]:
        *lead, h, w, c = x.shape
        kernel = self.param(
            "kernel", nn.initializers.normal(0.02), (c, self.features * 4), jnp.float32
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        y = (x @ kernel.astype(x.dtype)).reshape(-1, h, w, self.features, 2, 2)
        y = y.transpose(0, 1, 4, 2, 5, 3).reshape(*lead, 2 * h, 2 * w, self.features)
        return y + bias.astype(x.dtype)


class Table(nn.Module):
    """A learned table of a given shape."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> Float[AnyArray, "*shape"]:
        return self.param("embedding", nn.initializers.normal(0.02), self.shape, jnp.float32)


class Perceptron(nn.Module):
    """Linears `linear_0`, `linear_1`, ... of the given widths, with ReLU between them."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*b i"]) -> Float[Array, "*b o"]:
        for k, width in enumerate(self.widths):
            x = Linear(width, name=f"linear_{k}")(jax.nn.relu(x) if k else x)
        return x
