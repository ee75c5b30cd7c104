"""Measure the compute and transfer rates of this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax.phases import STREAMED


class Rates(NamedTuple):
    """Rates of this machine: the best of a few measurements."""

    float32: float  # FLOP/s of a float32 matrix product
    compute: float  # FLOP/s in the blocks' compute dtype
    bandwidth: float  # bytes/s from host to device

    def seconds(
        self, work: Mapping[str, float], bytes_moved: Mapping[str, int]
    ) -> dict[str, float]:
        """Minimum time by phase in seconds, without overlap and overhead."""
        return {
            phase.name: work[phase.name] / (self.float32 if phase.exact else self.compute)
            + bytes_moved[phase.name] / self.bandwidth
            for phase in STREAMED
        }


def measure(dtype: str, size: int = 2048) -> Rates:
    """Measure products of `size` by `size` matrices and a transfer of 64 MiB."""
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
