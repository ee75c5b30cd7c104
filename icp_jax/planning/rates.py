"""What this machine does in a second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax.phases import STREAMED


class Rates(NamedTuple):
    """What this machine does in a second, measured: the best of a few tries."""

    float32: float  # FLOP of a matrix product
    compute: float  # the same in the dtype that blocks compute in
    bandwidth: float  # bytes from host to device

    def seconds(
        self, work: Mapping[str, float], bytes_moved: Mapping[str, int]
    ) -> dict[str, float]:
        """The least time by phase: nothing overlaps, and nothing is lost."""
        return {
            phase.name: work[phase.name] / (self.float32 if phase.exact else self.compute)
            + bytes_moved[phase.name] / self.bandwidth
            for phase in STREAMED
        }


def measure(dtype: str, size: int = 2048) -> Rates:
    """Rates of size³ products and of one 64 MiB transfer."""
    rates = []
    for kind in ("float32", dtype):
        a = jnp.ones((size, size), kind)
        multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=jax.lax.Precision.HIGHEST))
        rates.append(2 * size**3 / _best(lambda m=multiply, a=a: m(a).block_until_ready()))
    bulk = np.ones(1 << 24, np.float32)
    moving = _best(lambda: jax.device_put(bulk, may_alias=False).block_until_ready())
    return Rates(rates[0], rates[1], bulk.nbytes / moving)


def _best(run, tries: int = 5) -> float:
    run()
    times = []
    for _ in range(tries):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)
