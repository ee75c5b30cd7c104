"""`core.prune` outside a trace, with the matrices of one tap in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from icp_jax.backend import heap
from icp_jax.core import quantize
from icp_jax.core.damping import climb_on_host
from icp_jax.core.hyper import Hyper, Recipe
from icp_jax.core.passes import Params, Statistics
from icp_jax.core.prune import LayerMetrics, Pace, in_order, prune_tap
from icp_jax.models.spec import Family
from icp_jax.streaming.ahead import Ahead
from icp_jax.streaming.mesh import Devices


def prune_block(
    family: Family,
    params: Params,
    seen: Statistics,
    hyper: Hyper,
    recipe: Recipe,
    dtypes: Mapping[str, str],
    devices: Devices,
    tick: Callable[[int, int], None],
) -> tuple[Params, dict[str, quantize.Grid], LayerMetrics]:
    """Prune all linears of a block to `hyper.counts` `[linears]`.

    params, and the sums in `seen`: emptied on the way, since each may be as large as the block.
    """
    counts = {
        s.name: np.int32(n) for s, n in zip(family.linears, np.asarray(hyper.counts), strict=True)
    }
    pruned = {name: params.pop(name) for name in tuple(params)}
    grids: dict[str, quantize.Grid] = {}
    found: dict[str, Any] = {}
    for tap, names in family.readers().items():
        kernels = {name: pruned[name]["kernel"] for name in names}
        for name in names:
            pruned[name] = {k: leaf for k, leaf in pruned[name].items() if k != "kernel"}
        sums = seen.sums.pop(tap)
        # memory freed by the last tap is too fragmented for the next
        held = 4 * sum(x.nbytes for x in jax.tree.leaves((sums, kernels)))
        heap.give_back(held)
        pace = Pace(climb_on_host, Ahead(held), devices.rows, devices.whole)
        done = prune_tap(kernels, sums, seen.energies, counts, hyper, recipe, dtypes, pace)
        for name, kernel in done.kernels.items():
            pruned[name]["kernel"] = kernel
        grids |= done.grids
        found |= done.metrics
        del done
        jax.block_until_ready(found)  # finish this tap before the next one allocates
        tick(len(found), len(family.linears))
    return pruned, devices.whole(grids), jax.device_get(in_order(family, found))
