"""Immediate Compensation Pruning (CVPR 2025), to be read along with the paper.

Two streams of hidden states run through the model: `dense` is the unpruned model's, `sparse` that
of the model as pruned so far. The dense stream passes through block t. Block t, still dense, is
tuned to map the sparse stream to the result. Then it is pruned on the sparse stream, which passes
through the pruned block. So each block repairs the damage of those before it. `icp+` prunes it in
steps, and tunes what is kept after each. All is pure: jit it, vmap or map it, differentiate it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.backend import current as backend
from icp_jax.core import retune, streams
from icp_jax.core.choice import LEFT
from icp_jax.core.compensate import compensate
from icp_jax.core.fate import CompensationMetrics, not_compensated
from icp_jax.core.hyper import Hyper, Recipe
from icp_jax.core.passes import Apply, alike_runs, narrowed, widened
from icp_jax.core.prune import LayerMetrics, prune_block
from icp_jax.core.pruners import METHODS
from icp_jax.core.streams import Streams
from icp_jax.core.token_errors import quantiles
from icp_jax.models.spec import Family

Params = dict[str, Any]
ICP = Recipe()


class BlockMetrics(NamedTuple):
    """Metrics of a block: one structure for every block and method, stacked `[L]`."""

    layers: LayerMetrics
    compensation: CompensationMetrics  # of this block, before it was pruned
    error: Float[Array, "*L"]  # ‖sparse-dense‖² / ‖dense‖² of the streams after the block
    heldout: Float[Array, "*L"]  # the same on held-out samples; NaN without any
    error_median: Float[Array, "*L"]  # of the error of each token by itself, see `token_errors`
    error_p95: Float[Array, "*L"]
    retune: CompensationMetrics  # of this block, after it was pruned, see `retune.joined`


def block_step(
    family: Family,
    recipe: Recipe,
    apply: Apply,
    params: Params,
    through: list[Streams],
    hyper: Hyper,
    order: Int[AnyArray, "K N"],
    damaged: bool | Bool[Array, ""] = True,
) -> tuple[Params, list[Streams], BlockMetrics]:
    """Prune one block and pass the streams through it. Params keep their dtypes.

    through: the streams of the calibration samples, then of the held-out samples if any.
    hyper: with the counts of this block, `[linears]`. order: samples of each epoch, E of the
    compensation and then S·R of the re-tune. damaged: whether an earlier block is pruned.
    """
    dtypes, samples = [leaf.dtype for leaf in jax.tree.leaves(params)], order.shape[1]
    method, epochs, each = METHODS[recipe.method], len(hyper.rates), hyper.retune.shape[-1]
    stored_as = {s.name: params[s.name]["kernel"].dtype.name for s in family.linears}
    sparse = [stream.sparse for stream in through]
    tuned, lost, left = widened(params), not_compensated(epochs), not_compensated(each)
    steps, some = [], jnp.any(hyper.counts != LEFT)

    dense = [streams.forward(apply, tuned, stream.dense) for stream in through]  # the targets
    x, y = sparse[0].samples(samples), dense[0].samples(samples)
    whole = apply.rematerialised() if recipe.remat else apply
    repair = partial(compensate, whole, inputs=x, targets=y, undo=recipe.undo)
    if method.compensates and epochs:
        first = partial(repair, lr=hyper.rates, order=order[:epochs])
        tuned, lost = jax.lax.cond(damaged, first, lambda p: (p, lost), tuned)
    for k, its in enumerate(retune.split(order[epochs:], hyper)):
        seen = streams.statistics(family, apply, tuned, sparse[0], samples)
        tuned, layers = prune_block(family, tuned, seen, *retune.step(hyper, recipe, k), stored_as)
        steps.append((layers, left))
        if method.retunes and each:
            more = partial(repair, lr=hyper.retune[k], order=its, keep=retune.masks(family, tuned))
            tuned, found = jax.lax.cond(some, more, lambda p: (p, left), tuned)
            steps[-1] = retune.recounted(family, tuned, layers, stored_as), found
    layers, again = retune.joined(steps)
    stored = narrowed(tuned, dtypes)
    kept = widened(stored)  # as rounded in the checkpoint
    after = [streams.forward_beside(apply, kept, *pair) for pair in zip(sparse, dense, strict=True)]

    moved = [Streams(s, d) for (s, *_), d in zip(after, dense, strict=True)]
    errors = [error for _, error, _ in after] + [jnp.full((), jnp.nan, jnp.float32)]
    median, high = quantiles(after[0][2][:samples])
    return stored, moved, BlockMetrics(layers, lost, errors[0], errors[1], median, high, again)


def icp(
    family: Family,
    params: Params,
    tokens: Int[AnyArray, "N T"] | Float[AnyArray, "N 3 S S"],
    hyper: Hyper,
    order: Int[AnyArray, "L K N"],
    recipe: Recipe = ICP,
    heldout: Int[AnyArray, "M T"] | Float[AnyArray, "M 3 S S"] | None = None,
) -> tuple[Params, BlockMetrics]:
    """Prune a whole model on calibration samples in one trace, with everything in memory.

    family, recipe: static. params: {'embed', 'blocks': {'0': ...}, 'head'}; their dtypes stay.
    hyper: see `hyper.hyper`. order: see `hyper.block_orders`. heldout: samples to measure the error
    of the streams on. Equal blocks are one scan over stacked params, so the program does not grow
    with depth. Reference: ICP, algorithm 1.
    """
    samples = (tokens,) if heldout is None else (tokens, heldout)
    with backend.use(recipe.backend or backend.use.value):
        through = [streams.start(family, params, x, recipe) for x in samples]
        given, blocks, metrics = params["blocks"], Params(), []
        for run in alike_runs(family, given):
            alike = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(given[str(t)] for t in run))
            through, (pruned, found) = _scan(family, recipe, alike, through, hyper, order, run)
            metrics.append(found)
            for k, t in enumerate(run):
                blocks[str(t)] = jax.tree.map(lambda leaf, k=k: leaf[k], pruned)
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *metrics)
    return {**params, "blocks": blocks}, joined


def _scan(
    family: Family,
    recipe: Recipe,
    alike: Params,
    through: list[Streams],
    hyper: Hyper,
    order: Int[AnyArray, "L K N"],
    run: list[int],
) -> tuple[list[Streams], tuple[Params, BlockMetrics]]:
    """`block_step` over consecutive equal blocks, with stacked params."""
    apply = Apply(family.block_at(run[0]), recipe.dtype)

    def step(through, block):
        params, counts, *rest = block
        now = hyper._replace(counts=counts)
        stored, through, found = block_step(family, recipe, apply, params, through, now, *rest)
        return through, (stored, found)

    at = np.array(run, np.int32)
    pruned = jnp.any(hyper.counts != LEFT, axis=1).astype(jnp.int32)
    damaged = jnp.cumsum(pruned) > pruned  # a block before this one is pruned
    return jax.lax.scan(step, through, (alike, hyper.counts[at], order[at], damaged[at]))
