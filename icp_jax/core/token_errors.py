"""The error of the sparse stream, token by token.

A few tokens of a trained model have activations that are hundreds of times larger than the others'.
‖sparse-dense‖² / ‖dense‖² over all tokens is then their error alone. The median and the 95th
percentile of the tokens' own errors show the others.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icp_jax.arrays import AnyArray
from icp_jax.core.stats import share


class Beside(NamedTuple):
    """A batch of the sparse stream beside the dense one."""

    lost: Float[Array, ""]  # ‖sparse-dense‖² of the real samples
    energy: Float[Array, ""]  # ‖dense‖² of the real samples
    of_tokens: Float[Array, "b *p"]  # ‖sparse-dense‖² / ‖dense‖² of every position


def beside(y: Float[Array, "b *s"], dense: Float[Array, "b *s"], real: Bool[Array, "b"]) -> Beside:
    """Compare hidden states. real: which samples are not padding."""
    lost, energy = (jnp.sum(jnp.square(z), axis=-1) for z in (y - dense, dense))
    real = real.reshape(-1, *[1] * (lost.ndim - 1))
    distance, whole = (jnp.sum(jnp.where(real, z, 0)) for z in (lost, energy))
    return Beside(distance, whole, share(lost, energy))


@jax.jit
def quantiles(of_tokens: Float[AnyArray, "..."]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(median, 95th percentile) of the errors of all tokens."""
    median, high = jnp.quantile(of_tokens.reshape(-1), jnp.array([0.5, 0.95], jnp.float32))
    return median, high
