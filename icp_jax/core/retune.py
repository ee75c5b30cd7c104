"""The re-tune of a pruned block: `compensate` with the zeros of its linears held.

A block is pruned in steps, and tuned after each: the weights that go next are chosen where the
others have made up for those that went before. Reference for the re-tune: "Reconstruct the pruned
model block by block" (BR+GP), EMNLP 2024; for the steps: "To prune, or not to prune", 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.dtypes import canonicalize_dtype
from jaxtyping import Int

from icp_jax.arrays import AnyArray
from icp_jax.core import scaling
from icp_jax.core.choice import LEFT
from icp_jax.core.fate import CompensationMetrics
from icp_jax.core.hyper import Hyper, Recipe
from icp_jax.core.prune import LayerMetrics
from icp_jax.models.spec import Family

Params = dict[str, Any]


def step(hyper: Hyper, recipe: Recipe, k: int) -> tuple[Hyper, Recipe]:
    """The counts and the pattern of step k of the pruning of a block; the last has all of them.

    Of S steps, the share of zeros after k is 1 - (1 - k/S)², so that later steps take less.
    """
    done, steps = k + 1, len(hyper.retune)
    share = (steps**2 - (steps - done) ** 2, steps**2)
    if recipe.pattern is not None:
        n, m = recipe.pattern
        recipe = replace(recipe, pattern=(m - _part(m - n, *share), m))
    counts = jnp.where(hyper.counts == LEFT, LEFT, _part(hyper.counts, *share))
    return hyper._replace(counts=counts), recipe


def split(order: Int[AnyArray, "K N"], hyper: Hyper) -> list[Int[AnyArray, "R N"]]:
    """The orders of the samples for each step, from those of all."""
    each = hyper.retune.shape[-1]
    return [order[k * each : (k + 1) * each] for k in range(len(hyper.retune))]


def _part(count: Any, numerator: int, denominator: int) -> Any:
    """count·numerator / denominator, rounded down; exact in int32."""
    whole, rest = count // denominator, count % denominator
    return whole * numerator + rest * numerator // denominator


def joined(
    steps: list[tuple[LayerMetrics, CompensationMetrics]],
) -> tuple[LayerMetrics, CompensationMetrics]:
    """The metrics of all steps of a block.

    Of the layers, those of the last step, with the most rungs of all. Of the re-tunes, the last, or
    the last of those with the worst fate, with the losses of the epochs of all.
    """
    layers, tuned = steps[0]
    for later, again in steps[1:]:
        layers = later._replace(rungs=jnp.maximum(layers.rungs, later.rungs))
        losses = jnp.concatenate([tuned.epochs, again.epochs])
        both = (each._replace(epochs=losses) for each in (tuned, again))
        tuned = jax.tree.map(partial(jnp.where, tuned.fate > again.fate), *both)
    return layers, tuned


@partial(jax.jit, static_argnums=0)
def masks(family: Family, params: Params) -> Params:
    """Keep masks of the block's linears: False where a kernel is zero. Other leaves have none."""
    kernels = {spec.name: params[spec.name]["kernel"] for spec in family.linears}
    return {name: {"kernel": scaling.bits(kernel) > 0} for name, kernel in kernels.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _zeros(family: Family, dtypes: tuple[str, ...], params: Params) -> Int[jax.Array, "linears"]:
    kernels = [params[spec.name]["kernel"] for spec in family.linears]
    stored = [k.astype(canonicalize_dtype(d)) for k, d in zip(kernels, dtypes, strict=True)]
    return jnp.stack([scaling.zeros(kernel) for kernel in stored])


def recounted(
    family: Family, params: Params, layers: LayerMetrics, dtypes: Mapping[str, str]
) -> LayerMetrics:
    """The metrics with the zeros of the re-tuned kernels: rounding may make a few more.

    dtypes: the stored dtype of each linear.
    """
    stored_as = tuple(dtypes[spec.name] for spec in family.linears)
    return layers._replace(zeros=_zeros(family, stored_as, params))
