"""`core.compensate` for streams that do not fit on the device, one chunk of samples at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax.backend import heap
from icp_jax.core.compensate import ADAM, State, mse, probe, sample_loss, tune_step, with_rate
from icp_jax.core.fate import CompensationMetrics, Fate, fate, mean_square
from icp_jax.core.masks import apply_keep
from icp_jax.streaming import storage, transfer
from icp_jax.streaming.storage import Stream

Params = Any
Tick = Callable[[int, int, float], None]


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _steps(apply, state, keep, inputs, targets, valid):
    """One step on each of the first `valid` samples. Returns (state, sum of the losses)."""

    def step(i, carry):
        state, total = carry
        x, y = (jax.lax.dynamic_slice_in_dim(a, i, 1) for a in (inputs, targets))
        state, loss = tune_step(apply, ADAM, mse, keep, state, x, y)
        return state, total + loss

    return jax.lax.fori_loop(0, valid, step, (state, jnp.zeros((), jnp.float32)))


@partial(jax.jit, static_argnums=0)
def _probe(apply, params, keep, inputs, targets, valid):
    """Mean loss of the first `valid` samples."""

    def add(i, total):
        x, y = (jax.lax.dynamic_slice_in_dim(a, i, 1) for a in (inputs, targets))
        return total + sample_loss(apply, mse, params, keep, x, y)

    return jax.lax.fori_loop(0, valid, add, jnp.zeros((), jnp.float32)) / valid.astype(jnp.float32)


def start(params: Params) -> State:
    """The initial state, on the device."""
    return jax.device_put(State(params, ADAM.init(params)), storage.here())


class Tuning:
    """The samples of one compensation, and the passes over them.

    keep: masks applied in the loss. tick: called with (steps done, total steps, mean loss so far).
    """

    def __init__(
        self,
        apply: Callable[[Params, jax.Array], jax.Array],
        inputs: Stream,
        targets: Stream,
        keep: Params | None = None,
        tick: Tick = lambda done, total, loss: None,
    ):
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise ValueError(
                f"{len(inputs)} inputs, {len(targets)} targets: give equal numbers, at least 1"
            )
        self.apply, self.keep, self.tick = apply, keep, tick
        self.arrays = tuple(
            a if isinstance(a, Stream) else np.asarray(a) for a in (inputs, targets)
        )
        nbytes = int(np.prod(self.arrays[0].shape[1:])) * self.arrays[0].dtype.itemsize
        self.size = transfer.gather_size(len(inputs), nbytes)

    def loss(self, params: Params, samples: np.ndarray) -> float:
        """Mean loss over these samples."""
        chunks = transfer.batches(self.arrays, self.size, samples)
        sums = [
            np.float32(n) * _probe(self.apply, params, self.keep, *xy, n) for _, xy, n in chunks
        ]
        return float(np.sum(jax.device_get(sums))) / len(samples)

    def compile(self, state: State) -> State:
        """Compile the step, so that the compiler's memory is free before a step takes its own."""
        _, sent, _ = next(transfer.batches(self.arrays, self.size, np.arange(1)))
        state, loss = _steps(self.apply, state, self.keep, *sent, np.int32(0))
        transfer.settle(loss)
        heap.give_back()
        return state

    def epoch(self, state: State, order: np.ndarray, done: int, total: int) -> tuple[State, float]:
        """One pass over the samples in this order. Returns (state, mean loss).

        Stops early if the loss is not finite. done, total: steps, for `tick`.
        """
        losses: list[jax.Array] = []
        seen, mean = 0, 0.0
        for where, sent, count in transfer.batches(self.arrays, self.size, order):
            state, loss = _steps(self.apply, state, self.keep, *sent, count)
            if losses:  # one transfer late, so that the device keeps working
                mean = float(np.sum(losses)) / seen
                self.tick(done + seen, total, mean)
            del sent  # free it before the next transfer
            losses.append(transfer.settle(loss))
            seen = where.stop
            if not np.isfinite(mean):
                break
        mean = float(np.sum(jax.device_get(losses))) / seen
        self.tick(done + seen, total, mean)
        return state, mean


def compensate(
    tuning: Tuning,
    params: Params,
    rates: np.ndarray,
    order: np.ndarray,
    again: Callable[[], Params] | None = None,
    compiles: bool = False,
) -> tuple[Params, CompensationMetrics]:
    """`core.compensate` with Adam and MSE. rates: `[E]`; order: `[E, N]`.

    params: a float32 tree; donated if `again` is given, which must return it anew. compiles:
    whether the step is yet to be compiled.
    """
    samples = len(tuning.arrays[0])
    few = np.arange(probe(samples))
    given = params
    if again is None:  # the steps donate their params
        params = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
    params = jax.device_put(params, storage.here())
    before = after = tuning.loss(params, few)
    state, means = start(params), []
    if compiles and len(order):
        state = tuning.compile(state)
    for epoch, (rate, samples_now) in enumerate(zip(rates, order, strict=True)):
        rate = jax.device_put(np.float32(rate), storage.here())
        state = state._replace(optimizer=with_rate(state.optimizer, rate))
        state, mean = tuning.epoch(state, samples_now, epoch * samples, order.size)
        means.append(mean)
        if not np.isfinite(mean):
            break
    params = state.params
    del state  # make room for the original params, which may be needed
    if len(order):
        after = tuning.loss(params, few)
    if after > before:
        heap.give_back()  # free Adam's moments: the original params are loaded next to the new
        given, again = (given if again is None else again()), None
        before, after = (tuning.loss(p, np.arange(samples)) for p in (given, params))
    square = mean_square(np.asarray(tuning.arrays[1][few], np.float32))
    became = fate(np.float32(before), np.float32(after), np.isfinite(means).all(), square)
    if int(became) >= Fate.NOT_FINITE:
        params = given if again is None else again()
    means += [np.nan] * (len(order) - len(means))
    first, last, epochs = (np.asarray(x, np.float32) for x in (before, after, means))
    measured = CompensationMetrics(first, last, epochs, np.asarray(became, np.int32))
    return apply_keep(params, tuning.keep), measured
