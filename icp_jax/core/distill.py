"""The global pass: masked distillation of a pruned model to the dense model's predictions.

Pruning block by block never sees what the model says. Here all blocks are tuned together, so that
the pruned model predicts what the dense one does, with the zeros held. With few tokens it
overfits within an epoch, so held-out samples decide which epoch's params are kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.core import passes
from icp_jax.core.compensate import ADAM, State
from icp_jax.core.distill_steps import Steps as Steps
from icp_jax.core.distill_steps import backward, forward, loss_and_slope, losses
from icp_jax.core.distill_steps import cosine as cosine
from icp_jax.core.distill_steps import steps as steps
from icp_jax.core.hyper import Numbers
from icp_jax.core.kl import weights
from icp_jax.core.passes import Apply, Params, alike_runs, narrowed, widened
from icp_jax.models.spec import Family


class DistillMetrics(NamedTuple):
    """KL(dense || pruned) in nats per token."""

    steps: Float[Numbers, "*p E S"]  # of the samples of each step, before it
    heldout: Float[Numbers, "*p E+1"]  # of the held-out samples, at first and after each epoch
    best: Int[Numbers, "*p"]  # the epoch whose params are kept; 0: the given ones


def distill(
    family: Family,
    params: Params,
    dense: Params,
    tokens: Int[AnyArray, "N T"],
    heldout: Int[AnyArray, "M T"],
    *,
    rates: Float[AnyArray, "E S"],
    order: Int[AnyArray, "E S B"],
    dtype: str = "float32",
) -> tuple[Params, DistillMetrics]:
    """Tune the blocks of a pruned model to predict what the dense one does, all in one trace.

    params, dense: trees of the same family; embedding and head stay as they are, and so do the
    zeros of the linears. rates: Adam's learning rate of each step. order: the samples of each
    step. Both come from `steps`. heldout: samples that decide which epoch's params are returned,
    measured as rounded to the params' dtypes. dtype: compute dtype of the blocks. Works under jit
    (family and dtype are static) and vmap over rates. Returns (params in their dtypes,
    DistillMetrics).
    """
    runs = alike_runs(family, params["blocks"])
    applies = [Apply(family.block_at(run[0]), dtype) for run in runs]
    best = [_stacked(params["blocks"], run) for run in runs]
    ours, theirs = (weights(family, p["embed"], p["head"]) for p in (params, dense))
    of_dense = [widened(_stacked(dense["blocks"], run)) for run in runs]
    x, x_held = (_embedded(family, params, samples) for samples in (tokens, heldout))
    y, y_held = (
        _through(applies, of_dense, _embedded(family, dense, s)) for s in (tokens, heldout)
    )

    def measure(stacks):
        after = _through(applies, [widened(stack) for stack in stacks], x_held)
        return jnp.mean(losses(family.head, ours, theirs, after, y_held))

    def step(states, at):
        samples, rate = at
        at_head = partial(loss_and_slope, family.head, ours, theirs, target=y[samples])
        return _step(family, applies, states, rate, x[samples], at_head)

    def epoch(carry, at):
        states, best, least, which = carry
        number, order, rates = at
        states, found = jax.lax.scan(step, states, (order, rates))
        stored = [_stored(s.params, like) for s, like in zip(states, best, strict=True)]
        now = measure(stored)
        better = now < least  # not if it is NaN
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), stored, best)
        least, which = jnp.where(better, now, least), jnp.where(better, number, which)
        return (states, best, least, which), (found, now)

    first = measure(best)
    states = [State(wide, jax.vmap(ADAM.init)(wide)) for wide in map(widened, best)]
    numbers = jnp.arange(1, len(order) + 1, dtype=jnp.int32)
    begin = states, best, first, jnp.int32(0)
    (_, best, _, which), (found, after) = jax.lax.scan(
        epoch, begin, (numbers, jnp.asarray(order), jnp.asarray(rates))
    )
    metrics = DistillMetrics(found, jnp.concatenate([first[None], after]), which)
    return {**params, "blocks": _apart(runs, best)}, metrics


def _stacked(blocks: Params, run: list[int]) -> Params:
    """Consecutive equal blocks as one tree, so that the program does not grow with depth."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(blocks[str(t)] for t in run))


def _apart(runs: list[list[int]], stacks: list[Params]) -> Params:
    """The inverse of `_stacked`, for all runs."""
    return {
        str(t): jax.tree.map(lambda leaf, k=k: leaf[k], stack)
        for run, stack in zip(runs, stacks, strict=True)
        for k, t in enumerate(run)
    }


def _stored(params: Params, like: Params) -> Params:
    """Params rounded to the dtypes of others."""
    return narrowed(params, [leaf.dtype for leaf in jax.tree.leaves(like)])


def _embedded(family: Family, params: Params, tokens: AnyArray) -> Float[Array, "n t d"]:
    return passes.embed(family.embed, "float32", params["embed"], jnp.asarray(tokens))


def _through(
    applies: list[Apply], stacks: list[Params], x: Float[Array, "n t d"]
) -> Float[Array, "n t d"]:
    """The hidden states after the last block."""
    for apply, stack in zip(applies, stacks, strict=True):

        def ahead(x, params, apply=apply):
            return forward(apply, params, x), None

        x, _ = jax.lax.scan(ahead, x, stack)
    return x


def _step(
    family: Family, applies: list[Apply], states: list[State], rate: Any, x: Any, at_head: Any
) -> tuple[list[State], Float[Array, ""]]:
    """One step. x: the first hidden states. Returns (states, loss before the step)."""
    inputs = []
    for apply, state in zip(applies, states, strict=True):

        def ahead(x, params, apply=apply):
            return forward(apply, params, x), x

        x, kept = jax.lax.scan(ahead, x, state.params)
        inputs.append(kept)
    loss, slope = at_head(x)
    after = []
    for apply, state, kept in reversed(list(zip(applies, states, inputs, strict=True))):

        def back(slope, at, apply=apply):
            state, x = at
            state, slope = backward(family, apply, state, rate, x, slope)
            return slope, state

        slope, state = jax.lax.scan(back, slope, (state, kept), reverse=True)
        after.append(state)
    return after[::-1], loss
