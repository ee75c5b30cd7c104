"""Compensation: tune one block until its output approximates a target. A scan over samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.core.fate import CompensationMetrics, Fate, fate, mean_square
from icp_jax.core.hyper import sample_order, schedule
from icp_jax.core.masks import apply_keep

Params = Any
Loss = Callable[[jax.Array, jax.Array], jax.Array]
Undo = Literal["all", "probe", "never"]

PROBE, PROBE_MOST = 16, 8  # the probe takes one sample in 16, and at most 8


class State(NamedTuple):
    """The state carried from step to step."""

    params: Params
    optimizer: Any  # the state of the optax transformation


def mse(outputs: Float[Array, "*s"], targets: Float[Array, "*s"]) -> Float[Array, ""]:
    """Mean squared error in float32."""
    return jnp.mean(jnp.square(outputs.astype(jnp.float32) - targets.astype(jnp.float32)))


def adam() -> optax.GradientTransformationExtraArgs:
    """Adam with the learning rate in its state, so that the rate can be traced."""
    fixed = ("b1", "b2", "eps", "eps_root")  # static: Python floats stay exact
    tiny = float(np.finfo(np.float32).tiny)  # leaves updates as they are; makes sqrt(0) smooth
    return optax.inject_hyperparams(optax.adam, fixed, jnp.float32)(1e-4, eps_root=tiny)


ADAM = adam()


def with_rate(optimizer: Any, rate: Float[Array, ""] | None) -> Any:
    """Set the learning rate in an optimizer's state; None leaves it unchanged.

    Raises ValueError if the rate is not an injected hyperparameter of the optimizer.
    """
    if rate is None:
        return optimizer
    if not optax.tree.get_all_with_path(optimizer, "learning_rate"):
        raise ValueError(
            "this optimizer has no learning rate to set: leave lr out, or wrap the optimizer "
            "in optax.inject_hyperparams"
        )
    return optax.tree.set(optimizer, learning_rate=rate)


def probe(samples: int) -> int:
    """Size of the probe: the first samples, on which the loss is measured before and after."""
    return min(PROBE_MOST, max(1, samples // PROBE))


def sample_loss(apply, loss: Loss, params: Params, keep, x, y) -> Float[Array, ""]:
    """Loss of one sample `[1, ...]`, with the masks applied."""
    return loss(apply(apply_keep(params, keep), x), y)


def updated(tx, state: State, grads: Params) -> State:
    """The state after one optimizer step along these gradients."""
    with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
        updates, optimizer = tx.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
    return State(params, optimizer)


def tune_step(apply, tx, loss: Loss, keep, state: State, x, y) -> tuple[State, Float[Array, ""]]:
    """One optimizer step on one sample `[1, ...]`. Returns (state, loss before the step)."""
    value, grads = jax.value_and_grad(lambda p: sample_loss(apply, loss, p, keep, x, y))(
        state.params
    )
    return updated(tx, state, grads), value


def mean_loss(apply, loss: Loss, params: Params, keep, inputs, targets) -> Float[Array, ""]:
    """Mean of `sample_loss` over all samples."""

    def add(total, sample):
        x, y = (a[None] for a in sample)
        return total + sample_loss(apply, loss, params, keep, x, y), None

    total, _ = jax.lax.scan(add, jnp.zeros((), jnp.float32), (inputs, targets))
    return total / np.float32(len(inputs))


class Task(NamedTuple):
    """How a block is tuned; static under jit."""

    apply: Callable[[Params, jax.Array], jax.Array]
    tx: optax.GradientTransformation
    loss: Loss
    undo: Undo


class Samples(NamedTuple):
    """What a block is tuned on."""

    inputs: Float[Array, "n *s"]
    targets: Float[Array, "n *t"]
    rates: Float[Array, "e"] | None  # one per epoch; None keeps the optimizer's own
    order: Int[Array, "e n"]  # sample indices of each epoch


@partial(jax.jit, static_argnames="task")
def _compensate(task: Task, params: Params, given: Samples, keep: Params | None):
    (apply, tx, loss, undo), (inputs, targets, rates, order) = task, given
    few = probe(len(inputs))

    def measure(params, count):
        return mean_loss(apply, loss, params, keep, inputs[:count], targets[:count])

    def sample(state, i):
        x, y = (jax.lax.dynamic_slice_in_dim(a, i, 1) for a in (inputs, targets))
        return tune_step(apply, tx, loss, keep, state, x, y)

    def epoch(state, at):
        rate, samples = at
        state = state._replace(optimizer=with_rate(state.optimizer, rate))
        state, losses = jax.lax.scan(sample, state, samples)
        return state, jnp.mean(losses)

    before = measure(params, few)
    state, epochs = jax.lax.scan(epoch, State(params, tx.init(params)), (rates, order))
    tuned, after = state.params, measure(state.params, few)
    if undo == "all":
        before, after = jax.lax.cond(
            after > before,
            lambda: (measure(params, len(inputs)), measure(tuned, len(inputs))),
            lambda: (before, after),
        )
    became = fate(before, after, jnp.all(jnp.isfinite(epochs)), mean_square(targets[:few]))
    if undo != "never":
        tuned = jax.tree.map(partial(jnp.where, became >= Fate.NOT_FINITE), params, tuned)
    return apply_keep(tuned, keep), CompensationMetrics(before, after, epochs, became)


def compensate(
    apply: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    inputs: Float[AnyArray, "n *s"],
    targets: Float[AnyArray, "m *t"],
    *,
    tx: optax.GradientTransformation = ADAM,
    loss: Loss = mse,
    epochs: int = 1,
    lr: float | Float[AnyArray, "*e"] | None = None,
    gamma: float | Float[AnyArray, ""] = 1.0,
    order: Int[AnyArray, "e n"] | None = None,
    seed: SupportsIndex | Sequence[SupportsIndex] = 0,
    keep: Params | None = None,
    undo: Undo = "all",
) -> tuple[Params, CompensationMetrics]:
    """Tune `params` so that apply(params, inputs) approximates `targets`, one sample per step.

    apply: a pure function of (params, one sample `[1, ...]`). apply, tx and loss are static under
    jit: pass the same objects, or equal hashable ones, to reuse the compiled program.
    tx: any optax transformation. lr: its learning rate, multiplied by gamma after each epoch, or
    one rate per epoch. It requires an injected rate, as in the default Adam (1e-4 if lr is
    unset). order: sample indices of each epoch; if unset, permutations drawn from `seed`.
    keep: masks of `params`, applied in the loss and to the result. undo: return the original
    params if a loss is not finite or rises. "probe" measures the rise on the first samples, "all"
    confirms it on all samples, "never" always returns the tuned params.
    Works under jit, vmap (over lr, gamma, params or samples), jvp and grad. Returns (params,
    CompensationMetrics). Raises ValueError if shapes do not match. Reference: ICP, section 3.
    """
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(
            f"{len(inputs)} inputs, {len(targets)} targets: give equal numbers, at least 1"
        )
    order = jnp.asarray(sample_order(seed, epochs, len(inputs)) if order is None else order)
    rates = _rates(lr, gamma, len(order))
    samples = Samples(jnp.asarray(inputs), jnp.asarray(targets), rates, order)
    return _compensate(Task(apply, tx, loss, undo), params, samples, keep)


def _rates(lr: Any, gamma: Any, epochs: int) -> Float[Array, "e"] | None:
    """One rate per epoch, computed on the host in float64 unless lr or gamma is traced."""
    if lr is None:
        return None
    if np.ndim(lr) == 1:
        if len(lr) != epochs:
            raise ValueError(f"{len(lr)} rates for {epochs} epochs: give one rate per epoch")
        return jnp.asarray(lr, jnp.float32)
    if isinstance(lr, jax.core.Tracer) or isinstance(gamma, jax.core.Tracer):
        powers = jnp.asarray(gamma, jnp.float32) ** np.arange(epochs, dtype=np.float32)
        return jnp.asarray(lr, jnp.float32) * powers
    return jnp.asarray(schedule(float(lr), float(gamma), epochs))
