"""The parts of `bench_gpu.py` that each have a process, and so the card, to themselves.

python benchmarks/gpu_sides.py PART JOB.json    # prints one JSON object
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu import model7b, plain_torch
from gpu.rates import rates


def steps(job) -> dict[str, Any]:
    """Seconds of every program of a block, with its data on the device; and of compiling each."""
    import jax
    import jax.numpy as jnp

    from icp_jax.core import pruners, stats
    from icp_jax.core.passes import Apply, no_statistics
    from icp_jax.streaming import passes, transfer, tune
    from icp_jax.streaming.source import FolderSource

    source = FolderSource(model7b.checkpoint(job))
    family, length = source.family, job["length"]
    apply = Apply(family.block_at(0), "bfloat16")
    found: dict[str, Any] = {}

    def timed(name, run, fresh=lambda: ()):
        times = []
        for _ in range(4):
            args = jax.block_until_ready(fresh())
            started = time.perf_counter()
            jax.block_until_ready(run(*args))
            times.append(time.perf_counter() - started)
        found[name] = {"first": times[0], "seconds": statistics.median(times[1:])}
        print(name, found[name], file=sys.stderr, flush=True)

    timed("to_device", lambda: passes.to_device(source.block(0)))
    params = passes.to_device(source.block(0))
    batch = transfer.batch_size(job["samples"], length)
    x = jax.random.normal(jax.random.key(0), (batch, length, family.hidden_size))
    timed("forward", lambda: passes.forward(apply, params, x, batch))
    timed("forward_beside", lambda: passes.forward_beside(apply, params, x, x, batch))
    shapes = source.shapes(0)
    empty = partial(no_statistics, family, shapes, job["samples"] * length)
    timed("collect", lambda seen: passes.collect(apply, params, x, seen, batch), lambda: (empty(),))
    for name, tuned in (("steps", apply), ("steps, remat", apply.rematerialised())):

        def step(state, tuned=tuned):
            return tune._steps(tuned, state, None, x[:1], x[:1], 1)

        def fresh():
            return (tune.start(jax.tree.map(jnp.copy, params)),)

        timed(name, step, fresh)
    for width in sorted(set(family.tap_widths(shapes).values())):
        rows = jax.random.normal(jax.random.key(2), (2 * width, width)).astype("bfloat16")
        sums = jax.jit(stats.add)(stats.zeros(width), rows, 2 * width)
        moments = stats.moments(sums)
        timed(f"factor {width}", lambda m=moments: pruners.factor(m, 0.01))
        factor = pruners.factor(moments, 0.01)
        kernels = {k.shape: k for k in (params[s.name]["kernel"] for s in family.linears)}
        for shape, kernel in kernels.items():
            if shape[0] == width:
                budget = np.int32(0.7 * kernel.size)
                for pattern in (None, (2, 4)):

                    def walk(k=kernel, b=budget, p=pattern, f=factor):
                        return pruners.sparsegpt(k, f, b, pattern=p)

                    timed(f"walk {shape[0]}x{shape[1]} {pattern or ''}".strip(), walk)
        del moments, factor
    timed("stored", lambda: jax.tree.map(passes.stored, params, source.block(0)))
    return found


def first(job) -> dict[str, Any]:
    """The reports of the first blocks, on any platform and in either dtype."""
    import jax

    from icp_jax import CalibrationConfig, RunConfig
    from icp_jax.data import inputs
    from icp_jax.model import TreeSink
    from icp_jax.runs.job import job as planned
    from icp_jax.runs.records import block_record
    from icp_jax.streaming.job import Hooks
    from icp_jax.streaming.loop import prune_blocks
    from icp_jax.streaming.source import FolderSource

    source, found = FolderSource(model7b.checkpoint(job)), []
    calibration = CalibrationConfig(
        str(source.folder.with_name(model7b.TOKENS)), job["samples"], job["length"]
    )
    tokens = inputs.calibration(calibration, source)

    class Enough(Exception):
        """So many blocks are pruned."""

    def seal(report):
        found.append(block_record(report))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        if len(found) == job["first_blocks"]:
            raise Enough

    def progress(block, phase, done, total, loss):
        if done == total:
            print(block, phase, file=sys.stderr, flush=True)

    what = planned(source, RunConfig(dtype=job["dtype"]))
    with contextlib.suppress(Enough):
        prune_blocks(source, TreeSink({"blocks": {}}), tokens, what, Hooks(progress, seal))
    return {"platform": jax.default_backend(), "dtype": job["dtype"], "blocks": found}


def torch_side(job) -> dict[str, Any]:
    """The first blocks in plain PyTorch, the first uses of its kernels included."""
    return plain_torch.side(job, job["torch_blocks"])


PARTS = {"rates": lambda job: rates(), "steps": steps, "torch": torch_side, "first": first}

if __name__ == "__main__":
    from icp_jax.backend import compile_cache

    compile_cache.use()  # as the command line does
    print(json.dumps(PARTS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))))
