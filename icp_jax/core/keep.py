"""Keep pruned weights at zero during training."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from icp_jax.core.masks import apply_keep

Params = Any


class KeepZerosState(NamedTuple):
    """The state of `keep_zeros`. It includes the masks, so a checkpoint of it is complete."""

    keep: Params  # boolean masks: a tree like the params, None for leaves without a mask
    inner: Any  # the state of the wrapped transformation


def zeros_of(params: Params) -> Params:
    """Keep masks of the zeros in all matrices: False where a weight is zero.

    Vectors (biases, norms) get no mask.
    """
    return jax.tree.map(lambda p: p != 0 if jnp.ndim(p) > 1 else None, params)


def keep_zeros(
    tx: optax.GradientTransformation, keep: Params | None = None
) -> optax.GradientTransformationExtraArgs:
    """Wrap `tx` so that pruned weights stay at zero.

    keep: boolean masks, a tree like the params in which subtrees may be None or left out. If
    unset, the zeros of the params passed to `init`, see `zeros_of`. The masks are part of the
    state, so a jitted step does not embed them as constants. Gradients are masked before `tx`, so
    that moments ignore pruned weights. Updates are masked after it, so that weight decay and
    noise leave them at zero.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: Params) -> KeepZerosState:
        masks = zeros_of(params) if keep is None else jax.tree.map(jnp.asarray, keep)
        apply_keep(params, masks)  # raises now if a mask fits no param
        return KeepZerosState(masks, tx.init(params))

    def update(updates, state, params=None, **extra):
        updates, inner = tx.update(apply_keep(updates, state.keep), state.inner, params, **extra)
        return apply_keep(updates, state.keep), KeepZerosState(state.keep, inner)

    return optax.GradientTransformationExtraArgs(init, update)
