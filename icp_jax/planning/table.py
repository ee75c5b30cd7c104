"""The cost of each phase of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from icp_jax import phases
from icp_jax.phases import Phase
from icp_jax.planning import device, products
from icp_jax.planning.products import Products


class Entry(NamedTuple):
    """The cost of one phase: per run for phases outside the blocks, else per block."""

    phase: Phase
    device: Callable[[Any], Iterator[int]]  # bytes on the device, without the streams
    flops: Callable[[Products], Iterator[float]] = products.none  # of a block
    streams: int = 0  # transfers of a stream between host and device
    params: int = 0  # transfers of the stored params, which stay in host memory


TABLE = (
    Entry(phases.EMBED, device.embed, streams=1, params=1),
    Entry(phases.DENSE, device.dense, products.forward, streams=2, params=1),
    Entry(phases.COMPENSATE, device.compensate, products.compensate, streams=2),
    Entry(phases.STATISTICS, device.statistics, products.statistics, streams=1),
    Entry(phases.PRUNE, device.prune, products.prune),
    Entry(phases.RETUNE, device.retune, products.retune, streams=2),
    Entry(phases.SPARSE, device.sparse, products.forward, streams=3),
    Entry(phases.WRITE, device.write, params=2),  # float32 is twice the checkpoint's 16 bits
    Entry(phases.GLOBAL, device.global_pass, products.global_pass),  # moved: by the step
)
assert tuple(entry.phase for entry in TABLE) == phases.STREAMED
