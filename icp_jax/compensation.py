"""Compensation: tune one block's params so that, fed the damaged input, it gives the intact output.

Adam on the mean squared error over all positions, one sample a step, the learning rate times
gamma after each epoch. Works on any `apply(params, x)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import index
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax

from icp_jax import heap, places, streams
from icp_jax.masks import apply_keep
from icp_jax.places import Stream

Params = Any
Tick = Callable[[int, int, float], None]


NOT_FINITE, ROSE, NO_GAIN = "loss not finite", "loss rose", "no gain"
DIVERGED = (NOT_FINITE, ROSE)
MATTERS = 1e-3  # a rise of the loss by so much of the targets' mean square is no rounding


class Compensation(NamedTuple):
    """What a compensation did to its loss (mean squared error)."""

    before: float  # on the probe, before the first step
    after: float  # on the probe, after the last
    epochs: tuple[float, ...]  # mean of the losses met during each epoch
    restored: str = ""  # why the params are those from before: NOT_FINITE, ROSE or NO_GAIN


def _loss(apply, params, keep, x, y):
    out = apply(apply_keep(params, keep), x)
    return jnp.mean(jnp.square(out.astype(jnp.float32) - y.astype(jnp.float32)))


_adam = optax.scale_by_adam()


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _steps(apply, params, state, keep, inputs, targets, valid, lr):
    """One Adam step a sample, over the first `valid` samples; returns the sum of their losses."""

    def step(i, carry):
        params, state, total = carry
        x, y = (jax.lax.dynamic_slice_in_dim(a, i, 1) for a in (inputs, targets))
        loss, grads = jax.value_and_grad(lambda p: _loss(apply, p, keep, x, y))(params)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
            updates, state = _adam.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p - (lr * u).astype(p.dtype), params, updates)
        return params, state, total + loss

    return jax.lax.fori_loop(0, valid, step, (params, state, jnp.zeros((), jnp.float32)))


@partial(jax.jit, static_argnums=0)
def _probe(apply, params, keep, inputs, targets, valid):
    def add(i, total):
        x, y = (jax.lax.dynamic_slice_in_dim(a, i, 1) for a in (inputs, targets))
        return total + _loss(apply, params, keep, x, y)

    return jax.lax.fori_loop(0, valid, add, jnp.zeros((), jnp.float32)) / valid.astype(jnp.float32)


def compensate(
    apply: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    inputs: Stream,
    targets: Stream,
    *,
    epochs: int = 1,
    lr: float = 1e-4,
    gamma: float = 1.0,
    seed: SupportsIndex | Sequence[SupportsIndex] = 0,
    keep: Params | None = None,
    again: Callable[[], Params] | None = None,
    tick: Tick = lambda done, total, loss: None,
) -> tuple[Params, Compensation]:
    """Tune `params` so that apply(params, inputs) comes near `targets`.

    apply: a pure function, called with one sample `[1, ...]`; it is a static argument under jit,
    so pass the same (or an equal, hashable) one to reuse the compiled function.
    params: a float32 tree; it is left as it is, or used up where `again` can give it anew.
    inputs, targets: `[N, ...]`, NumPy arrays or `places.Samples`.
    epochs: passes over the samples, shuffled anew by (seed, epoch). lr: Adam's first rate;
    gamma: its factor after each epoch. keep: masks of `params`, held by `jnp.where` inside the
    loss and in the result. tick: called with (steps done, steps in all, mean loss so far).
    Returns (params, Compensation); the losses before and after are on a sixteenth of the
    samples, at most eight. Where these say that the loss rose, all samples are asked, and their
    losses reported; where it rose on them too, or was not finite at any step, the params come
    back as they were and `restored` says why: NO_GAIN for a rise by less than MATTERS of the
    targets' mean square, which a loss near the rounding of the stream may show.
    """
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: need as many, above 0")
    inputs, targets = (a if isinstance(a, Stream) else np.asarray(a) for a in (inputs, targets))
    nbytes = int(np.prod(inputs.shape[1:])) * inputs.dtype.itemsize
    size, total = streams.gather_size(len(inputs), nbytes), epochs * len(inputs)
    few = np.arange(min(8, max(1, len(inputs) // 16)))

    def loss_of(params, samples=few):
        return _mean_loss(apply, params, keep, inputs, targets, size, samples)

    given = params
    if again is None:  # the steps use theirs up
        params = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
    params = jax.device_put(params, places.here())
    before = after = loss_of(params)
    state, means, done = jax.device_put(_adam.init(params), places.here()), [], 0
    for epoch in range(epochs):
        order = np.random.default_rng((*_sequence(seed), epoch)).permutation(len(inputs))
        losses: list[jax.Array] = []
        seen, mean = 0, 0.0
        rate = np.float32(lr * gamma**epoch)
        for where, sent, count in streams.batches((inputs, targets), size, order):
            params, state, loss = _steps(apply, params, state, keep, *sent, count, rate)
            if losses:  # one transfer late: the device is already at the next
                mean = float(np.sum(losses)) / seen
                tick(done + seen, total, mean)
            del sent  # room for the next
            losses.append(streams.settle(loss))
            seen = where.stop
            if not np.isfinite(mean):
                break
        done += seen
        means.append(float(np.sum(jax.device_get(losses))) / seen)
        tick(done, total, means[-1])
        if not np.isfinite(means[-1]):
            break
    del state  # room for the params as they were, should they be asked for
    if epochs:
        after = loss_of(params)
    restored = ""
    if not np.all(np.isfinite([*means, after])):
        restored = NOT_FINITE
    elif after > before:
        heap.give_back()  # the moments' memory: the params as they were come beside these
        given, again = (given if again is None else again()), None
        before, after = (loss_of(p, np.arange(len(inputs))) for p in (given, params))
        if after > before:
            square = np.mean(np.square(np.asarray(targets[few], np.float32)))
            restored = ROSE if after - before > MATTERS * float(square) else NO_GAIN
    if restored:
        params = given if again is None else again()
    return apply_keep(params, keep), Compensation(before, after, tuple(means), restored)


def _mean_loss(apply, params, keep, inputs, targets, size, samples) -> float:
    """Over these samples, `size` to a transfer."""
    batches = streams.batches((inputs, targets), size, samples)
    sums = [np.float32(n) * _probe(apply, params, keep, *sent, n) for _, sent, n in batches]
    return float(np.sum(jax.device_get(sums))) / len(samples)


def _sequence(seed: Any) -> tuple[int, ...]:
    """Python integers of one integer or several, NumPy's and JAX's among them."""
    return tuple(index(part) for part in (seed if np.ndim(seed) else (seed,)))


def keep_zeros(
    tx: optax.GradientTransformation, keep: Params
) -> optax.GradientTransformationExtraArgs:
    """`tx`, with pruned weights held at zero: for the user's own fine-tuning.

    keep: boolean masks, a tree like the params in which subtrees may be None or left out. The
    gradients are masked before `tx` (moments see no pruned weight) and the updates after it
    (weight decay and noise move none).
    """
    tx = optax.with_extra_args_support(tx)

    def update(updates, state, params=None, **extra):
        updates, state = tx.update(apply_keep(updates, keep), state, params, **extra)
        return apply_keep(updates, keep), state

    return optax.GradientTransformationExtraArgs(tx.init, update)
