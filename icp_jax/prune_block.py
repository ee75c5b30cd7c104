"""One block: every linear to its budget, tap by tap, with what it did to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype

from icp_jax import heap, quantize, stats, streams
from icp_jax.config import PruneConfig, QuantConfig
from icp_jax.errors import InputError
from icp_jax.masks import parse_pattern
from icp_jax.mesh import ONE, Devices
from icp_jax.models.spec import Family
from icp_jax.pruners import METHODS
from icp_jax.pruners.damping import climb
from icp_jax.scaling import zeros
from icp_jax.steps import Params, Statistics

ADVICE = "more calibration samples or a larger --prune.damping may help"


@dataclass(frozen=True)
class LayerReport:
    """One linear. error: ‖(W-Ŵ)ᵀx‖²/‖Wᵀx‖² on the inputs it was pruned with.

    zeros: of the kernel as it is stored. They are as many as the budget but where more inputs are
    dead, or kept weights were zero before, or are rounded to zero by a grid or the dtype.
    rungs: dampings tried because the configured one left the Hessian not positive definite; the
    last was used.
    """

    name: str
    size: int
    zeros: int
    error: float
    rungs: tuple[float, ...] = ()


@partial(jax.jit, static_argnums=1)
def _zeros(kernel: jax.Array, dtype: str) -> jax.Array:
    return zeros(kernel.astype(canonicalize_dtype(dtype)))


def prune_block(
    family: Family,
    params: Params,
    seen: Statistics,
    budget: Mapping[str, int],
    config: PruneConfig,
    quant: QuantConfig | None = None,
    dtypes: Mapping[str, str] | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
    where: str = "",
    devices: Devices = ONE,
) -> tuple[Params, dict[str, quantize.Grid], list[LayerReport]]:
    """Prune every linear of a block to its budget; linears that read one tap share its factor.

    params, and the sums in `seen`: emptied on the way, since each is as large as the block.
    quant: round the kept weights too, on grids whose scales fit `dtypes`, a dtype a linear.
    Raises InputError for a Hessian that no damping helps, naming its layers, and `where`.
    """
    method, pattern = METHODS[config.method], parse_pattern(config.pattern)
    options: dict[str, Any] = {"block": config.block_size} if method.walks else {}
    grids: dict[str, quantize.Grid] = {}
    found, rungs, pruned = {}, {}, {name: params.pop(name) for name in tuple(params)}
    for tap in dict.fromkeys(spec.tap for spec in family.linears):
        readers = [spec.name for spec in family.linears if spec.tap == tap]
        moments = streams.settle(stats.moments(seen.sums.pop(tap)))
        importance, energies = jnp.diagonal(moments.second), {}
        for name in readers:
            known = pruned[name]["kernel"], moments, seen.energies.get(name)
            energies[name] = streams.settle(stats.energy(*known))
        heap.give_back()  # the holes that the tap before left fit none of the matrices to come
        try:
            prepared, rungs[tap] = climb(method.prepare, moments, config.damping)
        except np.linalg.LinAlgError as failed:
            raise InputError(f"layer {', '.join(readers)}{where}: {failed}; {ADVICE}") from None
        if method.walks:
            del moments  # the factor, which is as large, is all that a walk needs
        for name in readers:
            kernel, grid = devices.rows(pruned[name]["kernel"]), None
            if quant is not None and quant.bits is not None:
                grid = grids[name] = quantize.make_grid(
                    kernel,
                    np.int32(quant.bits),
                    group=quant.group,
                    symmetric=quant.symmetric,
                    search=quant.search,
                    importance=importance,
                    dtype=(dtypes or {}).get(name, "float32"),
                )
            if method.walks:
                options["grid"] = grid
            new, keep, *lost = streams.settle(
                method.prune(kernel, prepared, np.int32(budget[name]), pattern=pattern, **options)
            )
            if grid is not None and not method.walks:
                new = quantize.round_kernel(new, keep, grid)
            pruned[name] = {**pruned[name], "kernel": devices.whole(new)}
            if not method.walks:
                lost = [streams.settle(stats.lost_energy(kernel, new, moments))]
            error = stats.share(*lost, energies[name])
            del keep
            found[name] = (kernel.size, _zeros(new, (dtypes or {}).get(name, "float32")), error)
            tick(len(found), len(family.linears))
        jax.block_until_ready(found)  # one tap's matrices at a time
    layers = []
    found = jax.device_get(found)
    for name, tap in ((spec.name, spec.tap) for spec in family.linears):
        size, zeros, error = found[name]
        if not np.isfinite(error):
            raise InputError(f"layer {name}{where}: its error is not finite; {ADVICE}")
        layers.append(LayerReport(name, int(size), int(zeros), float(error), rungs[tap]))
    return pruned, devices.whole(grids), layers
