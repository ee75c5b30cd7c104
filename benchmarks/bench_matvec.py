"""A pruned matrix times one vector on this machine: what is gained by skipping zeros.

    python benchmarks/bench_matvec.py

Decoding at batch 1 reads every weight once a token. Milliseconds of W·x, W `[out, in]`, medians of
rounds in which all sides take turns:

- dense, float32 and bfloat16;
- bitmask: the packed matrix (bfloat16), unpacked by the jitted function of `streaming.unpacking` in
  the same program;
- rows: non-zeros (bfloat16) with 16-bit columns, each row filled up to the longest one;
- kernel: `matvec.c`, from the bitmask and the non-zeros, where gcc and the processor allow it. No
  part of the package: it says what such a kernel would gain.

All on one core, so that other work disturbs the sides alike.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from converters.packed_codec import encode, words_of
from converters.packed_forms import BITMASK, MASK, NONZEROS
from icp_jax.backend import heap
from icp_jax.streaming.unpacking import Packed, matrix_of

SHAPES = {  # outputs, inputs
    "SmolLM2-135M, q_proj": (576, 576),
    "SmolLM2-135M, up_proj": (1536, 576),
    "Llama-2-7B, q_proj": (4096, 4096),
    "Llama-2-7B, up_proj": (11008, 4096),
}
SPARSITIES = (0.5, 0.7, 0.9)
Side = tuple[Callable[..., Any], tuple[Any, ...]]
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


def kernel(place: Path) -> Callable[..., Any] | None:
    """The function of `matvec.c`; None without a compiler or AVX-512 with VBMI2."""
    flags = Path("/proc/cpuinfo").read_text().split()
    if shutil.which("gcc") is None or "avx512_vbmi2" not in flags:
        return None
    library, source = place / "matvec.so", Path(__file__).with_name("matvec.c")
    made = ["gcc", "-O3", "-march=native", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(made, check=True)
    return ctypes.CDLL(str(library)).matvec


def in_c(function: Callable[..., Any], parts: Any, weight: np.ndarray) -> Side:
    """The side of `matvec.c`. parts: of the weight, in bfloat16."""
    counts = np.count_nonzero(words_of(weight).reshape(weight.shape), axis=1)
    mask = parts[MASK].view(np.uint32)
    nonzeros = np.pad(parts[NONZEROS].view(np.uint16), (0, 32))  # it reads ahead
    first = (np.cumsum(counts) - counts).astype(np.int32)
    y = np.empty(len(weight), np.float32)

    def run(mask, nonzeros, first, x):
        arrays = (a.ctypes.data_as(ctypes.c_void_p) for a in (mask, nonzeros, first, x, y))
        function(*arrays, *weight.shape)
        return y

    return run, (mask, nonzeros, first)


def sides(weight: np.ndarray, function: Callable[..., Any] | None) -> dict[str, Side]:
    """name -> (function, its arguments before x). function: of `matvec.c`."""
    narrow = weight.astype(ml_dtypes.bfloat16)
    parts = encode(words_of(narrow), BITMASK)
    parts[NONZEROS] = parts[NONZEROS].view(narrow.dtype)
    longest = int(np.count_nonzero(weight, axis=1).max())
    columns = np.argsort(weight == 0, axis=1, kind="stable")[:, :longest]
    values = np.take_along_axis(narrow, columns, axis=1)
    put = jax.device_put
    compiled = {} if function is None else {"kernel": in_c(function, parts, narrow)}
    return {
        "dense float32": (dense, (put(weight),)),
        "dense bfloat16": (dense, (put(narrow),)),
        "bitmask": (bitmask, (put(Packed.of(parts, weight.shape, BITMASK)),)),
        "rows": (rows, (put(values), put(columns.astype(np.uint16)))),
        **compiled,
    }


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def measure(
    shape: tuple[int, int], sparsity: float, rounds: int, function: Callable[..., Any] | None
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    weight = np.where(rng.random(shape) < sparsity, np.float32(0), _normal(rng, shape))
    vector = _normal(rng, shape[1:])
    x, made, times = jnp.asarray(vector), sides(weight, function), {}
    want = weight.astype(ml_dtypes.bfloat16).astype(np.float32) @ vector
    for name, (function, given) in made.items():
        found = np.asarray(function(*given, vector if name == "kernel" else x))  # compiles
        assert np.abs(found - want).max() < 0.03 * np.abs(want).max(), name
        times[name] = []
    for k in range(rounds):
        for name, (function, given) in made.items():
            if name == "bitmask" and k >= FEW:
                continue
            started = time.perf_counter()
            jax.block_until_ready(function(*given, vector if name == "kernel" else x))
            times[name].append(1e3 * (time.perf_counter() - started))
    sizes = {n: sum(a.nbytes for a in jax.tree.leaves(given)) for n, (_, given) in made.items()}
    return {"ms": {n: statistics.median(t) for n, t in times.items()}, "bytes": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before XLA makes its threads
    heap.reuse()  # as the command line does
    found, load = [], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        function = kernel(Path(place))
    for name, shape in SHAPES.items():
        for sparsity in SPARSITIES:
            row = measure(shape, sparsity, args.rounds, function)
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
