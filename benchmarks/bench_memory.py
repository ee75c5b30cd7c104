"""Peak host memory of `icp-jax prune`: flat in the number of blocks, and under a hard limit.

    python benchmarks/bench_memory.py flat limit opt-6.7b --out memory.json

flat      one shape with 4, 8, 16 and 32 blocks: the peak of the whole process (VmHWM), taking
          turns, medians of three rounds.
limit     a checkpoint four times the size of the memory allowed, by a memory cgroup of its own
          (needs a writable /sys/fs/cgroup, as root has): all of the process and its part of the
          page cache count, and going over it kills. The plan is given the same limit. Libraries
          that other processes have read before count there, so VmHWM may be above the limit.
opt-6.7b  two blocks of OPT-6.7B's size (4096, 16384), float16, few samples.

On the CPU the device's arrays are in the same memory, and in the peak. Weights are random; what
is pruned is checked by the command itself, as always.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import common
import numpy as np

PRUNE = """
import os, sys
if sys.argv[1]:
    open(f"{sys.argv[1]}/cgroup.procs", "w").write(str(os.getpid()))
from icp_jax.cli import main
sys.exit(main(sys.argv[2:]))
"""
FLAT = (4, 8, 16, 32)
ROUNDS = 3


def checkpoint(folder: Path, hidden: int, ffn: int, blocks: int, dtype: str) -> int:
    """A random OPT in `folder`, a tensor at a time; returns its bytes."""
    config = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": 512,
        "hidden_size": hidden,
        "word_embed_proj_dim": hidden,
        "ffn_dim": ffn,
        "num_attention_heads": hidden // 64,
        "num_hidden_layers": blocks,
        "max_position_embeddings": 512,
    }
    rng = np.random.default_rng(0)

    def tensor(p):
        scale = p.shape[-1] ** -0.5 if len(p.shape) > 1 else 0.02
        drawn = rng.standard_normal(p.shape, np.float32) * np.float32(scale)
        return drawn + (1 if "norm.weight" in p.name else 0)

    return common.write_checkpoint(folder, config, dtype, tensor)


def prune(folder: Path, samples: int, length: int, *options: str, group: str = "") -> dict:
    """Peak MiB and seconds of a run in its own process, and in a cgroup where one is given."""
    ids = np.random.default_rng(1).integers(3, 512, 2 * samples * length).astype(np.int32)
    np.save(folder.parent / "ids.npy", ids)
    out = folder.parent / f"{folder.name}-pruned"
    sizes = ["--samples", str(samples), "--seq-len", str(length)]
    args = [str(folder), str(out), "--data", str(folder.parent / "ids.npy"), *sizes]
    code = [sys.executable, "-c", PRUNE, group, "prune", *args, *options]
    started = time.perf_counter()
    done = subprocess.run([*code, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(args)}: {done.stderr[-2000:]}")
    record = json.loads((out / "icp_run.json").read_text())
    found = {
        "peak_mib": record["peak_host_mib"],
        "seconds": time.perf_counter() - started,
        "sparsity": json.loads(done.stdout)["sparsity"],
        "memory": record["config"]["memory"],
    }
    subprocess.run(["rm", "-r", str(out)], check=True)
    return found


@contextlib.contextmanager
def cgroup(limit: int) -> Iterator[Path]:
    """A memory cgroup of either version, with a limit in bytes and no swap."""
    root, name, swap = Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max"
    if not (root / "cgroup.controllers").exists():
        root, name, swap = root / "memory", "memory.limit_in_bytes", "memory.swappiness"
    folder = root / "icp-jax-bench"
    folder.mkdir(exist_ok=True)
    try:
        (folder / name).write_text(str(limit))
        if (folder / swap).exists():
            (folder / swap).write_text("0")
        yield folder
    finally:
        folder.rmdir()


def flat(scratch: Path) -> dict:
    """Peaks over the number of blocks."""
    rows: dict[int, dict] = {}
    for blocks in FLAT:
        nbytes = checkpoint(scratch / f"flat-{blocks}", 512, 2048, blocks, "float32")
        rows[blocks] = {"checkpoint_mib": nbytes / 2**20, "runs": []}
        prune(scratch / f"flat-{blocks}", 16, 256)  # compiles
    for _ in range(ROUNDS):
        for blocks, row in rows.items():
            row["runs"].append(prune(scratch / f"flat-{blocks}", 16, 256))
    for blocks, row in rows.items():
        row["peak_mib"] = statistics.median(run["peak_mib"] for run in row["runs"])
        print(f"{blocks:3} blocks of {row['checkpoint_mib']:6.0f} MiB: {row['peak_mib']:.0f} MiB")
        subprocess.run(["rm", "-r", str(scratch / f"flat-{blocks}")], check=True)
    peaks = [row["peak_mib"] for row in rows.values()]
    print(f"largest over smallest: {max(peaks) / min(peaks):.3f}")
    return {"rows": rows, "largest_over_smallest": max(peaks) / min(peaks)}


def limited(scratch: Path, limit: int) -> dict:
    """A checkpoint of four times the limit, under the limit."""
    folder, shape = scratch / "large", (768, 3072)
    block = 4 * (4 * shape[0] ** 2 + 2 * shape[0] * shape[1])
    nbytes = checkpoint(folder, *shape, -(-4 * limit // block), "float32")
    with cgroup(limit) as group:
        found = prune(folder, 4, 64, "--host-memory", str(limit), group=str(group))
        found["cgroup_peak_mib"] = charged(group)
    print(
        f"checkpoint {nbytes / 2**20:.0f} MiB, limit {limit / 2**20:.0f} MiB: charged at most "
        f"{found['cgroup_peak_mib'] or float('nan'):.0f} MiB, process {found['peak_mib']:.0f} MiB, "
        f"{found['seconds']:.0f} s"
    )
    return {"checkpoint_mib": nbytes / 2**20, "limit_mib": limit / 2**20, **found}


def charged(group: Path) -> float | None:
    """MiB that a cgroup was charged for at its peak, where its version says."""
    names = ("memory.peak", "memory.max_usage_in_bytes")
    found = [int((group / name).read_text()) for name in names if (group / name).exists()]
    return found[0] / 2**20 if found else None


def large_blocks(scratch: Path) -> dict:
    """Two blocks of OPT-6.7B's size."""
    folder = scratch / "opt-6.7b"
    nbytes = checkpoint(folder, 4096, 16384, 2, "float16")
    found = prune(folder, 2, 256, "--prune.beta", "0")
    print(f"two OPT-6.7B blocks: {found['peak_mib']:.0f} MiB, {found['seconds']:.0f} s")
    return {"checkpoint_mib": nbytes / 2**20, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=("flat", "limit", "opt-6.7b"))
    parser.add_argument("--limit-mib", type=int, default=768)
    parser.add_argument("--out", help="a name under results/; without it nothing is written")
    args = parser.parse_args()
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    record = common.provenance()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["XDG_CACHE_HOME"] = name
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        if "flat" in args.parts:
            record["flat"] = flat(scratch)
        if "limit" in args.parts:
            record["limit"] = limited(scratch, args.limit_mib << 20)
        if "opt-6.7b" in args.parts:
            record["opt-6.7b"] = large_blocks(scratch)
    if args.out:
        print(common.write(args.out, record))


if __name__ == "__main__":
    main()
