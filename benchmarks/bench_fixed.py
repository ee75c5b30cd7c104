"""Where the time of a run goes: each phase beside its floor, and what is not arithmetic.

    python benchmarks/bench_fixed.py smollm2 --tokens smollm2_calibration.npy

SmolLM2-135M has thirty small blocks, so what is paid per block shows: compilations, block
checkpoints, hashing, export. The floor of a phase is its FLOPs at the rate of a 2048² product on
this machine, measured before the run. `--caches empty full`: a second run finds its programs in the
cache. Times are seconds of the process; the share is of the run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

METHODS = ("sparsegpt", "icp")


def child(job: dict) -> dict:
    """One run in this process, with the time and number of each cost."""
    from icp_jax.backend import compile_cache, heap

    compile_cache.use()
    heap.reuse()
    import jax

    from icp_jax import CalibrationConfig, CompensateConfig, PruneConfig, RunConfig
    from icp_jax.planning import cost, rates
    from icp_jax.planning.workload import resolved
    from icp_jax.runs import checkpoints, fingerprint, run
    from icp_jax.streaming.source import FolderSource

    seconds: collections.Counter = collections.Counter()
    times: collections.Counter = collections.Counter()

    def heard(name: str, duration: float, **_) -> None:
        if name.endswith("backend_compile_duration"):
            seconds["compile"] += duration
            times["compile"] += 1

    jax.monitoring.register_event_duration_secs_listener(heard)

    def count(owner, name: str, label: str) -> None:
        function = getattr(owner, name)

        def counted(*args, **kwargs):
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[label] += time.perf_counter() - started
                times[label] += 1

        setattr(owner, name, counted)

    count(checkpoints.Checkpoints, "write", "block checkpoints (Orbax)")
    count(checkpoints.Checkpoints, "seal", "their checksums")
    count(fingerprint.Weights, "__init__", "hashing the weights")
    count(heap, "give_back", "giving memory back")
    count(run, "export", "export")
    count(run, "verify_export", "checking the export")
    config = RunConfig(
        model=job["model"],
        out=job["out"],
        prune=PruneConfig(method=job["method"], sparsity=0.5),
        calibration=CalibrationConfig(job["tokens"], samples=job["samples"], seq_len=512),
        compensate=CompensateConfig(epochs=1) if "icp" in job["method"] else CompensateConfig(),
    )
    with contextlib.closing(FolderSource(job["model"])) as source:
        shapes = [source.shapes(t) for t in range(source.family.n_blocks)]
        work = cost.flops(source.family, shapes, cost.load(resolved(config, source), 512))
    rate = rates.measure("float32").float32
    started = time.perf_counter()
    pruned = run.prune_folder(config)
    total = time.perf_counter() - started
    phases: collections.Counter = collections.Counter()
    for block in pruned.blocks:
        phases.update(block.seconds)
    fixed = {k: {"seconds": s, "times": times[k]} for k, s in seconds.items()}
    floors = {phase: count / rate for phase, count in work.items() if count}
    found = {"total": total, "flops_per_second": rate, "phases": dict(phases)}
    return {**found, "floors": floors, "fixed": fixed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--caches", nargs="+", default=["empty"])
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(json.loads(args.child))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for method in args.methods:
            for cache in args.caches:
                job = {"model": args.model, "tokens": args.tokens, "samples": args.samples}
                job |= {"method": method, "out": f"{scratch}/{method}-{cache}"}
                done = subprocess.run(
                    [*(sys.executable, __file__, "-", "--tokens", "-"), "--child", json.dumps(job)],
                    env={**os.environ, "XDG_CACHE_HOME": f"{scratch}/cache"},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                rows.append({"method": method, "cache": cache, **json.loads(done.stdout)})
                print(table(rows[-1]), flush=True)
    common.write(
        "fixed.json", {**common.provenance(), "model": Path(args.model).name, "rows": rows}
    )


def table(row: dict) -> str:
    lines = [f"{row['method']}, compile cache {row['cache']}: {row['total']:.1f} s"]
    for name, seconds in row["phases"].items():
        floor = row["floors"].get(name, 0.0)
        lines.append(f"  {name:28}{seconds:8.2f} s, floor {floor:8.2f} s")
    for name, found in sorted(row["fixed"].items(), key=lambda item: -item[1]["seconds"]):
        share = found["seconds"] / row["total"]
        lines.append(f"  {name:28}{found['seconds']:8.2f} s {share:6.1%} {found['times']:5}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
