"""Prune the linears of one block, tap by tap: linears with the same tap share its factor.

Each piece is a compiled function. In a trace they become one program; outside, a driver runs them
one by one and holds the matrices of one tap at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.dtypes import canonicalize_dtype
from jaxtyping import Array, Float, Int

from icp_jax.core import quantize, scaling, stats
from icp_jax.core.choice import LEFT, fits
from icp_jax.core.damping import climb
from icp_jax.core.hyper import Hyper, Recipe
from icp_jax.core.passes import Statistics
from icp_jax.models.spec import Family

Params = dict[str, Any]


class LayerMetrics(NamedTuple):
    """Metrics of a block's pruned linears, in the order of `family.linears`."""

    zeros: Int[Array, "*p linears"]  # in the kernels as stored; dead inputs may add to the counts
    error: Float[Array, "*p linears"]  # ‖(W-Ŵ)ᵀx‖² / ‖Wᵀx‖² on the inputs it was pruned with
    rungs: Int[Array, "*p linears"]  # how often the damping was raised, see `damping`


@dataclass(frozen=True)
class Pace:
    """What a driver does between the pieces; the default, for a trace, does nothing."""

    climb: Callable[..., tuple[Any, Int[Array, ""]]] = climb
    settle: Callable[[Any], Any] = lambda tree: tree  # wait for results if that saves memory
    rows: Callable[[Any], Any] = lambda kernel: kernel  # shard the outputs over devices
    whole: Callable[[Any], Any] = lambda tree: tree  # gather them again


IN_TRACE = Pace()


class Tap(NamedTuple):
    """The pruned linears of one tap, by name."""

    kernels: dict[str, Float[Array, "i o"]]
    grids: dict[str, quantize.Grid]  # empty without quantization
    metrics: dict[str, tuple[Int[Array, ""], Float[Array, ""], Int[Array, ""]]]


def prune_tap(
    kernels: dict[str, Float[Array, "i o"]],
    sums: stats.Sums,
    energies: Mapping[str, Float[Array, ""]],
    counts: Mapping[str, Any],
    hyper: Hyper,
    recipe: Recipe,
    dtypes: Mapping[str, str],
    pace: Pace = IN_TRACE,
) -> Tap:
    """Prune the linears of one tap to their counts, and leave those without one as they are.

    kernels: emptied on the way. sums: of the tap's inputs; donated outside a trace. energies:
    ‖Wᵀx‖² over all tokens, for linears that have it. hyper: damping and bits. dtypes: the stored
    dtype of each linear, to which the grid's scales are rounded.
    """
    method = recipe.pruner
    options: dict[str, Any] = {}
    out = _left_out(kernels, counts, recipe, dtypes)
    if not kernels:
        return out
    moments = pace.settle(stats.moments(sums))
    importance, energy = jnp.diagonal(moments.second), {}
    for name, kernel in kernels.items():
        energy[name] = pace.settle(stats.energy(kernel, moments, energies.get(name)))
    prepared, rungs = pace.climb(method.prepare, moments, hyper.damping)
    if method.walks:
        options["block"] = recipe.block_size
        del moments  # a walk needs only the factor, which is as large
    for name in tuple(kernels):
        kernel, grid = pace.rows(kernels.pop(name)), None
        old, count = None, counts[name]
        if _traced(count):  # it may turn out to be left as it is
            old, count = kernel, jnp.maximum(count, 0)
        if recipe.quantize:
            grid = out.grids[name] = _grid(kernel, hyper.bits, recipe, importance, dtypes[name])
        if method.walks:
            options["grid"] = grid
        new, keep, *lost = pace.settle(
            method.prune(kernel, prepared, count, pattern=recipe.pattern, **options)
        )
        if not method.walks:
            new = new if grid is None else quantize.round_kernel(new, keep, grid)
            lost = [pace.settle(stats.lost_energy(kernel, new, moments))]
        del keep
        made = new, stats.share(*lost, energy[name]), rungs
        if old is not None:
            made = jax.tree.map(partial(jnp.where, counts[name] == LEFT), (old, 0.0, 0), made)
        new, *measured = made
        zeros = _zeros(new, dtypes[name])
        out.kernels[name] = pace.whole(new)
        out.metrics[name] = (zeros, *measured)
    return out


def _left_out(kernels: dict[str, Any], counts: Mapping[str, Any], recipe: Recipe, dtypes) -> Tap:
    """Take the kernels that are known to be left as they are out of `kernels`.

    In a trace those are the ones that cannot have the recipe's pattern or groups.
    """
    out = Tap({}, {}, {})
    for name in tuple(kernels):
        count, inputs = counts[name], len(kernels[name])
        cannot = not fits(inputs, recipe.pattern, recipe.group)
        if cannot if _traced(count) else count == LEFT:
            out.kernels[name] = kernels.pop(name)
            zeros = _zeros(out.kernels[name], dtypes[name])
            nothing = zeros * 0
            out.metrics[name] = (zeros, nothing.astype(jnp.float32), nothing)
    return out


def _traced(count: Any) -> bool:
    return isinstance(count, jax.core.Tracer)


@partial(jax.jit, static_argnums=1)
def _zeros(kernel: Float[Array, "i o"], dtype: str) -> Int[Array, ""]:
    return scaling.zeros(kernel.astype(canonicalize_dtype(dtype)))


def _grid(kernel, bits, recipe: Recipe, importance, dtype: str) -> quantize.Grid:
    return quantize.make_grid(
        kernel,
        bits,
        group=recipe.group,
        symmetric=recipe.symmetric,
        search=recipe.search,
        importance=importance,
        dtype=dtype,
    )


def prune_block(
    family: Family,
    params: Params,
    seen: Statistics,
    hyper: Hyper,
    recipe: Recipe,
    dtypes: Mapping[str, str],
) -> tuple[Params, LayerMetrics]:
    """Prune all linears of a block to `hyper.counts` `[linears]`. For use in a trace."""
    params = dict(params)
    found: dict[str, Any] = {}
    counts = {spec.name: hyper.counts[k] for k, spec in enumerate(family.linears)}
    for tap, names in family.readers().items():
        kernels = {name: params[name]["kernel"] for name in names}
        done = prune_tap(kernels, seen.sums[tap], seen.energies, counts, hyper, recipe, dtypes)
        params |= {name: {**params[name], "kernel": new} for name, new in done.kernels.items()}
        found |= done.metrics
    return params, in_order(family, found)


def in_order(family: Family, found: Mapping[str, Any]) -> LayerMetrics:
    """Stack metrics by name in the order of `family.linears`."""
    rows = [found[spec.name] for spec in family.linears]
    return LayerMetrics(*(jnp.stack(column) for column in zip(*rows, strict=True)))
