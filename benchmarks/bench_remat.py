"""Compensation with attention's scores kept, and computed again: memory and time of a step.

    python benchmarks/bench_remat.py

A step of Adam on one block of random weights, one sample of 2048 tokens, float32: what XLA plans
to hold beside params and moments, and seconds, both ways in turns, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import common
import jax
import jax.numpy as jnp
import numpy as np
from prune_job import SHAPES, hf_config, weights

from icp_jax.core.passes import Apply
from icp_jax.models import make_family
from icp_jax.streaming import tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="opt-125m")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    job = {"shape": args.shape, "blocks": 1, "seq_len": args.seq_len, "vocab": 256, "seed": 0}
    family, (_, (block,)) = make_family(hf_config(job)), weights(job)
    apply = Apply(family.block, "float32")
    sides = {"kept": apply, "again": apply.rematerialised()}
    x, y = (
        jax.random.normal(jax.random.key(i), (1, args.seq_len, family.hidden_size))
        for i in range(2)
    )
    rest = None, x, y, np.int32(1)
    begun = tune.start(jax.tree.map(jnp.array, block))
    programs = {k: tune._steps.lower(side, begun, *rest).compile() for k, side in sides.items()}
    mib = {k: p.memory_analysis().temp_size_in_bytes / 2**20 for k, p in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds + 1):
        for name, program in programs.items():
            state = tune.start(jax.tree.map(jnp.array, block))
            started = time.perf_counter()
            jax.block_until_ready(program(state, *rest))
            times[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    ratio = statistics.median(
        b / a for a, b in zip(times["kept"][1:], times["again"][1:], strict=True)
    )
    record = {**common.provenance(), "mib": mib, "seconds": seconds, "time_ratio": ratio}
    print(f"{mib}\n{seconds}\nagain/kept {ratio:.2f}")
    print(common.write("bench_remat.json", record))


if __name__ == "__main__":
    main()
