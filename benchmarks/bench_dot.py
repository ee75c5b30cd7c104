"""Products with a transposed left side on the CPU: ours beside what XLA makes of them.

    python benchmarks/bench_dot.py

For the kernel gradient of a linear, xᵀ·dy with x `[T, in]` and dy `[T, out]`, and for the walk's
update, Uᵀ·E: milliseconds as `jnp.matmul(x.T, dy)` and as `left_transposed(x, dy)`, in turns,
medians, and the median of their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time

import common
import jax

from icp_jax.backend import heap
from icp_jax.backend.products import left_transposed

SHAPES = {  # rows, m, n of aᵀ b
    "q_proj of OPT-125M": (512, 768, 768),
    "fc1 of OPT-125M": (512, 768, 3072),
    "fc2 of OPT-125M": (512, 3072, 768),
    "q_proj of OPT-1.3B": (512, 2048, 2048),
    "fc1 of OPT-1.3B": (512, 2048, 8192),
    "fc2 of OPT-1.3B": (512, 8192, 2048),
    "walk of OPT-1.3B's fc1": (512, 128, 8192),
}


def pair(one, other, *args, rounds: int) -> tuple[float, float, float]:
    """Medians of milliseconds of both, and of one/other, taken in turns."""
    times = []
    for _ in range(rounds + 1):
        taken = []
        for f in (one, other):
            started = time.perf_counter()
            f(*args).block_until_ready()
            taken.append(1e3 * (time.perf_counter() - started))
        times.append(taken)
    left, right = zip(*times[1:], strict=True)  # the first compiled
    ratio = statistics.median(a / b for a, b in times[1:])
    return statistics.median(left), statistics.median(right), ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    heap.reuse()  # as the command line does
    rows = []

    def measure(name, sizes, one, other, *shapes):
        sides = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
        found = pair(one, other, *sides, rounds=args.rounds)
        row = dict(zip(("xla_ms", "ours_ms", "xla_over_ours"), found, strict=True))
        rows.append({"shape": name, "sizes": sizes, **row})
        print(f"{name:24} {found[0]:8.2f} {found[1]:8.2f}  x{found[2]:.2f}", flush=True)

    xla, ours = jax.jit(lambda a, b: a.T @ b), jax.jit(left_transposed)
    for name, (k, m, n) in SHAPES.items():
        measure(name, (k, m, n), xla, ours, (k, m), (k, n))
    print(common.write("bench_dot.json", {**common.provenance(), "rows": rows}))


if __name__ == "__main__":
    main()
