"""The parts of a step of the global pass: the loss at the head, and one block's update.

A step goes forward block by block and keeps the input of each. Then it goes back, and each block is
updated as soon as its gradient is known. So one block at a time is enough: `core.distill` has them
all in one program, `streaming.distill` loads them one after another, and both call these functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.core import retune
from icp_jax.core.compensate import ADAM, State, updated, with_rate
from icp_jax.core.hyper import Numbers, sample_order
from icp_jax.core.kl import Weights, mean_kl
from icp_jax.core.masks import apply_keep
from icp_jax.core.passes import Apply, Params
from icp_jax.models.spec import Family


class Steps(NamedTuple):
    """The steps of a distillation. See `steps`."""

    order: Int[Numbers, "*p E S B"]  # samples of each step
    rates: Float[Numbers, "*p E S"]  # Adam's learning rate in each step


def held_out(windows: int) -> int:
    """How many of the windows are held out: a tenth, but at least one."""
    return max(1, windows // 10)


def cosine(lr: float, steps: int, warmup: float = 0.1) -> np.ndarray:
    """A rate per step, `[steps]` float32: a linear rise over a share of them, a cosine to zero."""
    at, rise = np.arange(steps), max(1, round(warmup * steps))
    fall = np.cos(np.pi / 2 * np.clip((at - rise) / max(1, steps - rise), 0, 1)) ** 2
    return (lr * np.where(at < rise, (at + 1) / rise, fall)).astype(np.float32)


def steps(
    samples: int, *, epochs: int = 1, lr: float = 5e-4, batch: int = 1, seed: int = 0
) -> Steps:
    """The steps over shuffled samples, made on the host; leaves are NumPy arrays.

    lr: the highest rate, see `cosine`. batch: samples of a step; those of an epoch that do not
    fill a step are left out of it.
    """
    size = min(batch, samples)
    count = samples // size
    order = sample_order(seed, epochs, samples)[:, : count * size]
    rates = cosine(lr, epochs * count)
    return Steps(order.reshape(epochs, count, size), rates.reshape(epochs, count))


def forward(apply: Apply, params: Params, x: Float[AnyArray, "b t d"]) -> Float[Array, "b t d"]:
    """The output of a block, one sample at a time."""
    return jax.lax.map(lambda one: apply(params, one[None])[0], x)


def losses(
    module: Any,
    pruned: Weights,
    dense: Weights,
    x: Float[AnyArray, "b t d"],
    target: Float[AnyArray, "b t d"],
) -> Float[Array, "b"]:
    """The loss of each sample, see `kl.mean_kl`."""
    return jax.lax.map(lambda at: mean_kl(module, pruned, dense, *at), (x, target))


def loss_and_slope(
    module: Any,
    pruned: Weights,
    dense: Weights,
    x: Float[AnyArray, "b t d"],
    target: Float[AnyArray, "b t d"],
) -> tuple[Float[Array, ""], Float[Array, "b t d"]]:
    """(mean loss of the samples, its gradient with respect to x)."""
    of_one = jax.value_and_grad(lambda x, y: mean_kl(module, pruned, dense, x, y))
    found, slopes = jax.lax.map(lambda at: of_one(*at), (x, target))
    return jnp.mean(found), slopes / jnp.float32(len(x))


def backward(
    family: Family,
    apply: Apply,
    state: State,
    rate: Float[AnyArray, ""],
    x: Float[AnyArray, "b t d"],
    slope: Float[AnyArray, "b t d"],
) -> tuple[State, Float[Array, "b t d"]]:
    """Update a block by one step of Adam; weights of its linears that are zero stay zero.

    x: the block's input. slope: the loss's gradient with respect to its output. The block is
    computed again, and its gradient is added up one sample at a time. Returns (state, gradient with
    respect to the input).
    """
    whole = apply.rematerialised()

    def add(total, at):
        x, slope = at
        _, pull = jax.vjp(whole, state.params, x[None])
        grads, before = pull(slope[None])
        return jax.tree.map(jnp.add, total, grads), before[0]

    nothing = jax.tree.map(jnp.zeros_like, state.params)
    grads, before = jax.lax.scan(add, nothing, (x, slope))
    held = apply_keep(grads, retune.masks(family, state.params))
    return updated(ADAM, State(state.params, with_rate(state.optimizer, rate)), held), before
