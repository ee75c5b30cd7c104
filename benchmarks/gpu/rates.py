"""What the card does in a second: products, and copies between host and device.

python -m gpu.rates JOB.json    # from benchmarks/; prints one JSON object
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 8192  # of the products whose rate is measured
TRIES = 5


def product(dtype: str, size: int = SIZE) -> float:
    """FLOP/s of a product of size³."""
    import jax

    a, run = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype), multiply()
    return 2 * size**3 / median(lambda: run(a, a))


def multiply() -> Any:
    """A product of full precision, compiled."""
    import jax
    import jax.numpy as jnp

    return jax.jit(partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST))


def rates(size: int = SIZE) -> dict[str, float]:
    """FLOP/s of products in bfloat16 and float32; bytes/s of copies."""
    import jax

    from icp_jax.streaming import storage

    found = {dtype: product(dtype, size) for dtype in ("bfloat16", "float32")}
    bulk = jax.random.normal(jax.random.key(1), (8, size * size // 4))
    there = storage.Samples(bulk.shape, np.dtype("float32"), "pinned_host")

    def give() -> Any:
        there[slice(0, 8)] = bulk
        return there._parts

    found["to_host"] = bulk.nbytes / median(give)
    found["to_device"] = bulk.nbytes / median(lambda: there.send(slice(0, 8)))
    pageable = np.asarray(bulk)
    found["to_device_pageable"] = bulk.nbytes / median(lambda: jax.device_put(pageable))
    return found


def median(run: Callable[[], Any], tries: int = TRIES) -> float:
    """Seconds of a call, the first one, which compiles, left out."""
    import jax

    times = []
    for _ in range(tries + 1):
        started = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    from icp_jax.backend import compile_cache

    compile_cache.use()  # as the command line does
    tiny = json.loads(Path(sys.argv[1]).read_text())["tiny"]
    print(json.dumps(rates(256 if tiny else SIZE)))
