"""One side of `bench_prune.py`, in its own process: `icp_jax`, or plain PyTorch.

    python benchmarks/prune_sides.py '{"side": "jax", ...}'

Prints one JSON object: seconds by phase, peaks of memory, the rate of matmuls.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from prune_job import SHAPES, calibration, linears, weights

PHASES = ("dense", "statistics", "prune", "sparse", "compensate")
RATE_SIZE = 2048


def memory(field: str) -> float:
    """VmHWM or VmRSS of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def save_block(folder: Path, t: int, kernels: dict[str, np.ndarray]) -> None:
    np.savez(folder / f"block{t}.npz", **kernels)


def best_rate(multiply) -> float:
    """GFLOP/s of the best of several RATE_SIZE³ matmuls."""
    times = []
    for _ in range(12):
        started = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - started)
    return 2 * RATE_SIZE**3 / min(times) / 1e9


def run_jax(job):
    """(MiB after imports, run, damage, final, matmul), as `child` uses them."""
    from icp_jax.backend import compile_cache, heap

    compile_cache.use()  # as the command line does
    heap.reuse()
    import jax
    import jax.numpy as jnp

    from icp_jax.config import CompensateConfig, MemoryConfig, PruneConfig, RunConfig
    from icp_jax.core.passes import Apply
    from icp_jax.runs.job import job as planned
    from icp_jax.streaming import passes, transfer
    from icp_jax.streaming.job import Hooks
    from icp_jax.streaming.loop import prune_blocks
    from icp_jax.streaming.source import FolderSource

    baseline = memory("VmRSS")
    source, tokens, last = FolderSource(job["model"]), calibration(job), None
    family = source.family

    class Sink:
        """Drops the blocks, or saves them whole for the check."""

        def __init__(self, folder):
            self.folder = folder

        def write(self, t, params, grids=None):
            if self.folder:
                flat = {f"{m}.{leaf}": a for m, part in params.items() for leaf, a in part.items()}
                save_block(self.folder, t, flat)

    config = RunConfig(
        prune=PruneConfig(
            **{k: job[k] for k in ("sparsity", "alpha", "beta", "damping")},
            block_size=job["width"],
        ),
        compensate=CompensateConfig(job["epochs"], job["lr"], job["gamma"]),
        memory=MemoryConfig(streams="disk" if job["side"] == "jax-disk" else "host"),
        dtype="float32",
        seed=job["seed"],
    )

    def run(folder):
        nonlocal last
        hooks = Hooks(scratch=Path(job["model"]))
        reports = prune_blocks(source, Sink(folder), tokens, planned(source, config), hooks)
        last = reports[-1].error
        names = {phase for report in reports for phase in report.seconds}
        return {p: sum(r.seconds.get(p, 0.0) for r in reports) for p in names}

    def final(folder):
        """The sparse stream after the last block, by the compiled functions of the pipeline."""
        size = transfer.batch_size(*tokens.shape)
        out = np.empty((*tokens.shape, family.hidden_size), np.float32)
        transfer.advance(passes.embed_tokens(family, source.embed()), [tokens], out, size)
        for t in range(job["blocks"]):
            with np.load(folder / f"block{t}.npz") as saved:
                params = {}
                for name, leaf in saved.items():
                    params.setdefault(name.split(".")[0], {})[name.split(".")[1]] = leaf
            apply, params = Apply(family.block_at(t), "float32"), jax.device_put(params)
            transfer.advance(
                lambda x, n, a=apply, p=params: passes.forward(a, p, x, n), [out], out, size
            )
        np.save(folder / "final.npy", out)

    def matmul():
        a = jnp.full((RATE_SIZE, RATE_SIZE), 0.5)
        dot = jax.jit(jnp.matmul)
        return lambda: dot(a, a).block_until_ready()

    return baseline, run, lambda: last, final, matmul


def run_torch(job):
    import torch
    import torch_reference as reference

    torch.set_num_threads(os.cpu_count())
    baseline = memory("VmRSS")
    embed, blocks = weights(job)
    embed = {name: torch.from_numpy(part["embedding"]) for name, part in embed.items()}
    for t, block in enumerate(blocks):  # one by one: no block is there twice
        blocks[t] = reference.from_tree(block)
    del block
    tokens, last, shape = torch.from_numpy(calibration(job)), None, SHAPES[job["shape"]]

    def run(folder):
        nonlocal last

        def sink(t, params):
            if folder:
                kernels = {f"{k}.kernel": params[f"{k}.weight"].T.numpy() for k in linears(job)}
                save_block(folder, t, kernels)

        last = None
        *last, seconds = reference.prune_blocks(
            blocks,
            embed,
            tokens,
            job["budgets"],
            family=shape.family,
            hidden=shape.hidden,
            heads=shape.heads,
            attention=job["side"].removeprefix("torch-"),
            batch=max(1, job["torch_batch_tokens"] // job["seq_len"]),
            sink=sink,
            **{k: job[k] for k in ("epochs", "lr", "gamma", "damping", "width", "seed")},
        )
        return seconds

    def damage():
        sparse, dense = last
        return float((sparse - dense).square().sum() / dense.square().sum())

    def final(folder):
        np.save(folder / "final.npy", last[0].numpy())

    def matmul():
        a = torch.full((RATE_SIZE, RATE_SIZE), 0.5)
        out = torch.empty_like(a)
        return lambda: torch.mm(a, a, out=out)

    return baseline, run, damage, final, matmul


def child(job) -> dict:
    """One side: a first run, a timed run, the peak of memory, then the rate of matmuls."""
    folder = Path(job["save"]) if job["save"] else None
    begin = run_jax if job["side"].startswith("jax") else run_torch
    baseline, run, damage, final, matmul = begin(job)

    def timed(where):
        started = time.perf_counter()
        seconds = run(where)
        total = time.perf_counter() - started
        phases = {p: seconds.get(p, 0.0) for p in PHASES}
        # other: embedding and handing over the blocks
        return {**phases, "other": total - sum(phases.values()), "total": total}

    found = {"baseline_mib": baseline, "first": timed(folder)}
    if job["timed"]:
        busy = time.process_time()
        found |= {"seconds": timed(None), "peak_mib": memory("VmHWM")}
        found["cores_busy"] = (time.process_time() - busy) / found["seconds"]["total"]
        found["gflops"] = best_rate(matmul())
    found["damage"] = damage()
    if folder:
        final(folder)
    return found


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
