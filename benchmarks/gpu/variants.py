"""Ways to do one step of compensation: the run's own, and others that may be faster.

What the lowered program of a step at Llama-2-7B's shape says, 202 M weights and 2048 tokens:

- Attention is cuDNN's kernel in both directions; there is no matrix of scores.
- All products are bfloat16 in and out. A kernel's gradient leaves its product in bfloat16.
- Adam reads the params, the moments and that gradient, and writes the params and the moments:
  5.3 GB. With moments in bfloat16 3.6 GB.
- The kernels are rounded to bfloat16 for the products: 1.2 GB.
- Five of the seven kernels have a norm's scale folded in; the gradient of that scale reads kernel
  and gradient once more: 0.8 GB.

These 7.3 GB take 2.2 ms at 3.35 TB/s, beside 2.6 TFLOP of products. A step on two samples has them
once. The copies of a sample's two hidden states from the host are 67 MB: 1.4 ms at 49 GB/s, hidden
as long as the device's queue is full.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np


class Variant(NamedTuple):
    """One way. batch: samples a step; above 1 it is another algorithm, of which only the
    throughput is of interest.
    """

    name: str
    attention: str = "auto"  # cudnn where there is one; chunks
    remat: bool = False
    adam: str = "optax"  # fused: one expression a leaf; bfloat16: the same, with such moments
    narrow: bool = False  # the params that are differentiated are rounded to bfloat16 before
    batch: int = 1


VARIANTS = (
    Variant("as it runs"),
    Variant("Adam in one expression", adam="fused"),
    Variant("moments in bfloat16", adam="bfloat16"),
    Variant("params rounded once", narrow=True),
    Variant("batch 2", batch=2),
    Variant("batch 4", batch=4),
    Variant("attention in chunks", attention="chunks"),
    Variant("params rounded once, moments in bfloat16", adam="bfloat16", narrow=True),
    Variant("chunks, rematerialised", attention="chunks", remat=True),
)


def adam(moments: str) -> Any:
    """Adam without bias-corrected copies of the moments; they are kept in this dtype."""
    import jax
    import jax.numpy as jnp
    import optax

    b1, b2, eps, rate = 0.9, 0.999, 1e-8, 1e-4

    def init(params: Any) -> Any:
        empty = partial(jnp.zeros_like, dtype=moments)
        return jnp.zeros((), jnp.int32), jax.tree.map(empty, params), jax.tree.map(empty, params)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        count, first, second = state
        count += 1
        steps = count.astype(jnp.float32)
        scale = rate * jnp.sqrt(1 - b2**steps) / (1 - b1**steps)
        wide = partial(jax.tree.map, lambda leaf: leaf.astype(jnp.float32))
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, wide(first), grads)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, wide(second), grads)
        updates = jax.tree.map(lambda m, v: -scale * m / (jnp.sqrt(v) + eps), first, second)
        kept = (jax.tree.map(lambda leaf: leaf.astype(moments), tree) for tree in (first, second))
        return updates, (count, *kept)

    return optax.GradientTransformation(init, update)


def optimizer(variant: Variant) -> Any:
    """The optax transformation of a variant."""
    from icp_jax.core.compensate import ADAM

    if variant.adam == "optax":
        return ADAM
    return adam({"fused": "float32", "bfloat16": "bfloat16"}[variant.adam])


def step(variant: Variant, apply: Any) -> Callable[..., Any]:
    """(state, x, y) -> (state, loss): a step on `[batch, T, D]`, compiled, the state used up."""
    import jax
    import jax.numpy as jnp
    import optax

    from icp_jax.core.compensate import State, mse, sample_loss, tune_step

    tx = optimizer(variant)
    apply = apply.rematerialised() if variant.remat else apply

    def narrow(state: Any, x: Any, y: Any) -> Any:
        """Norms stay wide. The gradient of a kernel is then bfloat16 where it leaves its product,
        and no pass over the kernel in float32 comes between that and Adam."""
        low = jax.tree.map(
            lambda leaf: leaf.astype(jnp.bfloat16) if leaf.ndim > 1 else leaf, state.params
        )
        found, grads = jax.value_and_grad(lambda p: sample_loss(apply, mse, p, None, x, y))(low)
        grads = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), grads)
        updates, kept = tx.update(grads, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), kept), found

    def one(state: Any, x: Any, y: Any) -> Any:
        if variant.narrow:
            with jax.numpy_dtype_promotion("standard"):
                return narrow(state, x, y)
        return tune_step(apply, tx, mse, None, state, x, y)

    return jax.jit(one, donate_argnums=0)


def start(variant: Variant, params: Any) -> Any:
    """The first state."""
    from icp_jax.core.compensate import State

    return State(params, optimizer(variant).init(params))


@contextlib.contextmanager
def attending(variant: Variant) -> Iterator[None]:
    """Traced in here, attention takes the variant's kernel."""
    import jax

    from icp_jax.models import attention

    if variant.attention == "chunks":
        jax.clear_caches()  # the module is the same: what was traced of it would be taken again
        with mock.patch.object(attention, "_cudnn_takes", lambda head_dim: False):
            yield
        jax.clear_caches()
    else:
        yield


def sample(shape: tuple[int, ...], seed: int) -> Any:
    """Hidden states on the device."""
    import jax

    return jax.random.normal(jax.random.key(seed), shape, np.float32)
