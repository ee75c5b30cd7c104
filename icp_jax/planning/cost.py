"""FLOPs and bytes moved of a run, by phase, and what this machine does of them in a second."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax.config import RunConfig
from icp_jax.core import stats
from icp_jax.core.pruners import METHODS
from icp_jax.models.spec import Family

PHASES = ("embed", "dense", "compensate", "statistics", "prune", "sparse", "write")
Shapes = Mapping[str, tuple[int, int]]  # linear -> (inputs, outputs)


def flops(
    family: Family, shapes: Sequence[Shapes], config: RunConfig, positions: int
) -> dict[str, float]:
    """Multiplications and additions of the matrix products, by phase, over the whole run.

    positions: of a sample. The second moments count half: they are symmetric.
    """
    method, tokens = METHODS[config.prune.method], config.calibration.count * positions
    epochs = config.compensate.epochs or 0 if method.compensates else 0
    found = dict.fromkeys(PHASES, 0.0)
    for t, block in enumerate(shapes):
        weights = sum(i * o for i, o in block.values())
        # q·k, and weights times v
        forward = 2.0 * tokens * (weights + 2 * family.keys_met(t, positions) * family.hidden_size)
        widths = family.tap_widths(block).values()
        found["dense"] += forward
        found["sparse"] += forward
        found["compensate"] += 3 * epochs * forward if t else 0
        found["statistics"] += forward + tokens * sum(w * w for w in widths)
        # half of a product with a symmetric matrix: for the errors, or the walk, which knows them
        found["prune"] += sum(1.0 * i * i * o for i, o in block.values())
        # the last one's energy takes either its outputs or such a product
        inputs, outputs = block[family.linears[-1].name]
        if not stats.outputs_cost_less(tokens, inputs):
            found["statistics"] -= 2.0 * tokens * inputs * outputs
            found["prune"] += inputs * inputs * outputs
        if method.walks:
            found["prune"] += 2 / 3 * sum(w**3 for w in widths)
    return found


def moved(
    family: Family, config: RunConfig, stream: int, embed: int, blocks: Sequence[int], there: bool
) -> dict[str, int]:
    """Bytes between host and device, by phase, over the whole run.

    stream: bytes of one; embed, blocks: stored bytes of the embedding and of each block; there:
    the streams stay on the device.
    """
    count = len(blocks)
    epochs = config.compensate.epochs or 0 if METHODS[config.prune.method].compensates else 0
    passes = {"embed": 1, "dense": 2 * count, "statistics": count, "sparse": 3 * count}
    passes["compensate"] = 2 * epochs * (count - 1)
    found = {name: 0 if there else passes.get(name, 0) * stream for name in PHASES}
    found["embed"] += embed
    found["dense"] += sum(blocks)
    found["write"] += 2 * sum(blocks)  # float32, where the checkpoint has 16 bits
    return found


class Rates(NamedTuple):
    """What this machine does in a second, measured: the best of a few tries."""

    float32: float  # FLOP of a matrix product
    compute: float  # the same in the dtype that blocks compute in
    bandwidth: float  # bytes from host to device

    def seconds(
        self, work: Mapping[str, float], bytes_moved: Mapping[str, int]
    ) -> dict[str, float]:
        """The least time by phase: nothing overlaps, and nothing is lost."""
        exact = ("statistics", "prune")  # in float32 whatever the blocks compute in
        return {
            name: work[name] / (self.float32 if name in exact else self.compute)
            + bytes_moved[name] / self.bandwidth
            for name in PHASES
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
