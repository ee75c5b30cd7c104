"""Keep pruned weights at zero in the user's own training."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from icp_jax.core.masks import apply_keep

Params = Any


class KeepZerosState(NamedTuple):
    """The state of `keep_zeros`: whole, so that a checkpoint of it needs nothing beside it."""

    keep: Params  # boolean masks: a tree like the params, None where a leaf has none
    inner: Any  # the state of the wrapped transformation


def zeros_of(params: Params) -> Params:
    """Masks that keep the zeros of all matrices: False where a weight is zero.

    Vectors (biases, norms) get no mask.
    """
    return jax.tree.map(lambda p: p != 0 if jnp.ndim(p) > 1 else None, params)


def keep_zeros(
    tx: optax.GradientTransformation, keep: Params | None = None
) -> optax.GradientTransformationExtraArgs:
    """`tx`, with pruned weights held at zero.

    keep: boolean masks, a tree like the params in which subtrees may be None or left out. Unset:
    the zeros of the params that `init` is given, see `zeros_of`. The masks are part of the
    state, so a jitted step over (params, state) holds none as constants. Gradients are masked
    before `tx` (moments see no pruned weight) and updates after it (weight decay and noise move
    none).
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: Params) -> KeepZerosState:
        masks = zeros_of(params) if keep is None else jax.tree.map(jnp.asarray, keep)
        apply_keep(params, masks)  # a mask that fits no param is told now
        return KeepZerosState(masks, tx.init(params))

    def update(updates, state, params=None, **extra):
        updates, inner = tx.update(apply_keep(updates, state.keep), state.inner, params, **extra)
        return apply_keep(updates, state.keep), KeepZerosState(state.keep, inner)

    return optax.GradientTransformationExtraArgs(init, update)
