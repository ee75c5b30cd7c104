"""The global pass: masked distillation of a pruned model to the dense model's predictions.

Pruning block by block never sees what the model says. Here all blocks are tuned together, so that
the pruned model predicts what the dense one does, with the zeros held. With few tokens it
overfits within an epoch, so held-out samples decide which epoch's params are kept.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.backend.products import full_precision
from icp_jax.core import passes, retune
from icp_jax.core.compensate import ADAM, State, with_rate
from icp_jax.core.masks import apply_keep
from icp_jax.core.passes import Apply, Params, alike_runs, narrowed, widened
from icp_jax.models.spec import Family

ROWS = 128  # positions whose logits are in memory at once


class DistillMetrics(NamedTuple):
    """KL(dense || pruned) in nats per token."""

    steps: Float[Array, "E N"]  # of the sample of each step, before it
    heldout: Float[Array, "E+1"]  # of the held-out samples, at first and after each epoch
    best: Int[Array, ""]  # the epoch whose params are kept; 0: the given ones


def cosine(lr: float, steps: int, warmup: float = 0.1) -> np.ndarray:
    """A rate per step, `[steps]` float32: a linear rise over a share of them, a cosine to zero."""
    at, rise = np.arange(steps), max(1, round(warmup * steps))
    fall = np.cos(np.pi / 2 * np.clip((at - rise) / max(1, steps - rise), 0, 1)) ** 2
    return (lr * np.where(at < rise, (at + 1) / rise, fall)).astype(np.float32)


def hidden(family: Family, params: Params, tokens: Int[AnyArray, "b t"]) -> Float[Array, "b t d"]:
    """The hidden states after the last block; the gradient recomputes each block.

    Consecutive equal blocks are one scan, so the program does not grow with depth.
    """
    x = passes.embed(family.embed, "float32", params["embed"], tokens)
    blocks = params["blocks"]
    for run in alike_runs(family, blocks):
        apply = Apply(family.block_at(run[0]), "float32")
        step = jax.checkpoint(lambda x, p, apply=apply: (apply(p, x), None))
        alike = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(blocks[str(t)] for t in run))
        x, _ = jax.lax.scan(step, x, alike)
    return x


def divergence(
    family: Family, params: Params, x: Float[Array, "t d"], dense: Params, y: Float[Array, "t d"]
) -> Float[Array, ""]:
    """Mean KL(dense || pruned) over positions, from the last hidden states; a few rows at once."""

    def logs(params: Params, rows: jax.Array) -> jax.Array:
        table = family.head_table(params["embed"])
        with full_precision("float32"):
            found = family.head.apply({"params": params["head"]}, rows, table)
        return jax.nn.log_softmax(found.astype(jnp.float32))  # type: ignore[union-attr]

    @jax.checkpoint
    def of_rows(at: tuple[jax.Array, jax.Array]) -> jax.Array:
        ours, theirs = logs(params, at[0]), jax.lax.stop_gradient(logs(dense, at[1]))
        return jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)

    rows, length = min(ROWS, len(x)), len(x)
    parts = [
        jnp.pad(z, ((0, -length % rows), (0, 0))).reshape(-1, rows, z.shape[-1]) for z in (x, y)
    ]
    found = jax.lax.map(of_rows, tuple(parts)).reshape(-1)
    return jnp.sum(found[:length]) / np.float32(length)


def distill(
    family: Family,
    params: Params,
    dense: Params,
    tokens: Int[AnyArray, "N T"],
    heldout: Int[AnyArray, "M T"],
    *,
    rates: Float[AnyArray, "E N"],
    order: Int[AnyArray, "E N"],
) -> tuple[Params, DistillMetrics]:
    """Tune the blocks of a pruned model to predict what the dense one does, one sample a step.

    params, dense: trees of the same family; embedding and head stay as they are, and so do the
    zeros of the linears. rates: Adam's learning rate of each step, see `cosine`. order: sample
    indices of each epoch. heldout: samples that decide which epoch's params are returned. Works
    under jit (family is static) and vmap over rates. Params keep their dtypes. Returns (params,
    DistillMetrics).
    """
    given = params["blocks"]
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(given)]
    blocks, dense = widened(given), {**dense, "blocks": widened(dense["blocks"])}
    keep = {t: retune.masks(family, block) for t, block in blocks.items()}

    def targets(x):
        return jax.lax.map(lambda one: hidden(family, dense, one[None])[0], jnp.asarray(x))

    def loss(blocks, x, y):
        tree = {**params, "blocks": apply_keep(blocks, keep)}
        return divergence(family, tree, hidden(family, tree, x[None])[0], dense, y)

    def mean(blocks, x, y):
        return jnp.mean(jax.lax.map(lambda at: loss(blocks, *at), (jnp.asarray(x), y)))

    def step(state: State, at):
        i, rate = at
        value, grads = jax.value_and_grad(loss)(state.params, jnp.asarray(tokens)[i], y[i])
        with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
            optimizer = with_rate(state.optimizer, rate)
            updates, optimizer = ADAM.update(grads, optimizer, state.params)
            tuned = jax.tree.map(jnp.add, state.params, updates)
        return State(tuned, optimizer), value

    def epoch(carry, at):
        state, best, lowest, which, number = carry
        state, losses = jax.lax.scan(step, state, at)
        found = mean(state.params, heldout, y_held)
        better = found < lowest  # not if it is NaN
        best = jax.tree.map(partial(jnp.where, better), state.params, best)
        which = jnp.where(better, number, which)
        carry = state, best, jnp.where(better, found, lowest), which, number + 1
        return carry, (losses, found)

    y, y_held = targets(tokens), targets(heldout)
    first = mean(blocks, heldout, y_held)
    start = State(blocks, ADAM.init(blocks)), blocks, first, jnp.int32(0), jnp.int32(1)
    (_, best, _, which, _), (steps, after) = jax.lax.scan(
        epoch, start, (jnp.asarray(order), jnp.asarray(rates))
    )
    tuned = narrowed(apply_keep(best, keep), dtypes)
    metrics = DistillMetrics(steps, jnp.concatenate([first[None], after]), which)
    return {**params, "blocks": tuned}, metrics
