"""A pruned matrix times one vector on this machine: what is gained by skipping zeros.

    python benchmarks/bench_matvec.py

Decoding at batch 1 reads every weight once a token. Milliseconds of W·x, W `[out, in]`, medians of
rounds in which all sides take turns:

- dense, float32 and bfloat16;
- bitmask: the packed matrix (bfloat16), unpacked by the jitted function of `streaming.unpacking` in
  the same program;
- rows: non-zeros (bfloat16) with 16-bit columns, each row filled up to the longest one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import common
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from converters.packed_codec import encode, words_of
from converters.packed_forms import BITMASK, NONZEROS
from icp_jax.backend import heap
from icp_jax.streaming.unpacking import Packed, matrix_of

SHAPES = {  # outputs, inputs
    "SmolLM2-135M, q_proj": (576, 576),
    "SmolLM2-135M, up_proj": (1536, 576),
    "Llama-2-7B, q_proj": (4096, 4096),
    "Llama-2-7B, up_proj": (11008, 4096),
}
SPARSITIES = (0.5, 0.7, 0.9)
FEW = 3  # rounds of the slowest side


@jax.jit
def dense(weight, x):
    return jnp.matmul(weight, x.astype(weight.dtype), preferred_element_type=jnp.float32)


@jax.jit
def bitmask(packed, x):
    return dense(matrix_of(packed).astype(jnp.float32), x)


@jax.jit
def rows(values, columns, x):
    return jnp.sum(values.astype(jnp.float32) * x[columns.astype(jnp.int32)], axis=1)


def sides(weight: np.ndarray) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """name -> (function, its arguments before x)."""
    narrow = weight.astype(ml_dtypes.bfloat16)
    parts = encode(words_of(narrow), BITMASK)
    parts[NONZEROS] = parts[NONZEROS].view(narrow.dtype)
    longest = int(np.count_nonzero(weight, axis=1).max())
    columns = np.argsort(weight == 0, axis=1, kind="stable")[:, :longest]
    values = np.take_along_axis(narrow, columns, axis=1)
    put = jax.device_put
    return {
        "dense float32": (dense, (put(weight),)),
        "dense bfloat16": (dense, (put(narrow),)),
        "bitmask": (bitmask, (put(Packed.of(parts, weight.shape, BITMASK)),)),
        "rows": (rows, (put(values), put(columns.astype(np.uint16)))),
    }


def measure(shape: tuple[int, int], sparsity: float, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape, np.float32) * (rng.random(shape) >= sparsity)
    x = jnp.asarray(rng.standard_normal(shape[1], np.float32))
    made, times = sides(weight), {}
    want = weight.astype(ml_dtypes.bfloat16).astype(np.float32) @ np.asarray(x)
    for name, (function, given) in made.items():
        found = np.asarray(function(*given, x))  # compiles
        assert np.abs(found - want).max() < 0.03 * np.abs(want).max(), name
        times[name] = []
    for k in range(rounds):
        for name, (function, given) in made.items():
            if name == "bitmask" and k >= FEW:
                continue
            started = time.perf_counter()
            function(*given, x).block_until_ready()
            times[name].append(1e3 * (time.perf_counter() - started))
    sizes = {n: sum(a.nbytes for a in jax.tree.leaves(given)) for n, (_, given) in made.items()}
    return {"ms": {n: statistics.median(t) for n, t in times.items()}, "bytes": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    heap.reuse()  # as the command line does
    found, load = [], os.getloadavg()[0]
    for name, shape in SHAPES.items():
        for sparsity in SPARSITIES:
            row = measure(shape, sparsity, args.rounds)
            found.append({"name": name, "shape": shape, "sparsity": sparsity, **row})
            told = ", ".join(f"{side} {ms:.3f}" for side, ms in row["ms"].items())
            print(f"{name:22} {sparsity:.0%}: {told} ms", flush=True)
    print(
        common.write(
            "bench_matvec.json", {**common.provenance(), "load_before": load, "rows": found}
        )
    )


if __name__ == "__main__":
    main()
