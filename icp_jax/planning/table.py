"""What each phase of the loop costs, an entry a phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from icp_jax import phases
from icp_jax.phases import Phase
from icp_jax.planning import device, products
from icp_jax.planning.products import Products


class Entry(NamedTuple):
    """One phase. What comes once a run is planned for the run, all else for a block."""

    phase: Phase
    device: Callable[[Any], Iterator[int]]  # bytes at once there, beside the streams
    flops: Callable[[Products], Iterator[float]] = products.none  # of a block
    streams: int = 0  # how often a stream passes between host and device, each time
    params: int = 0  # how often stored params do; the host holds them all the while


TABLE = (
    Entry(phases.EMBED, device.embed, streams=1, params=1),
    Entry(phases.DENSE, device.dense, products.forward, streams=2, params=1),
    Entry(phases.COMPENSATE, device.compensate, products.compensate, streams=2),
    Entry(phases.STATISTICS, device.statistics, products.statistics, streams=1),
    Entry(phases.PRUNE, device.prune, products.prune),
    Entry(phases.SPARSE, device.sparse, products.forward, streams=3),
    Entry(phases.WRITE, device.write, params=2),  # float32, where the checkpoint has 16 bits
)
assert tuple(entry.phase for entry in TABLE) == phases.STREAMED
