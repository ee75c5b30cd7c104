"""ICP on one GPU with its memory capped: time by phase, peaks, beside the same in plain PyTorch.

    python benchmarks/bench_gpu.py --shape opt-6.7b --out gpu_opt-6.7b.json
    python benchmarks/bench_gpu.py --shape llama-7b --blocks 4 --parts rates prune torch \\
        --out gpu_llama-7b.json

The checkpoint is random, float16, with as many blocks as `--blocks`; calibration is 128 windows of
2048 random tokens, one epoch; all as `icp-jax prune` does it by default on a GPU: blocks computed
in bfloat16, statistics, solver and Adam in float32. JAX's pool is no larger than `--device-mib`,
and `--options` gives the plan less; what CUDA itself takes (context, library workspaces) lies
outside the pool. Parts, each in a process of its own:

    rates   products of 8192³ in bfloat16 and float32, copies to and from the card
    steps   every program of a block alone, its data on the card; first call (compiling) and median
    prune   the command, from folder to folder, the compilation cache empty or as `--cache` has it
    torch   `torch_reference.py` for the first `--torch-blocks` blocks: bfloat16 by autocast, fused
            attention, both streams on the card, which has the room; no file is written
    first   the reports of the first `--first-blocks` blocks on `--platform`, in `--dtype`, to hold
            the GPU's against the CPU's (some 20 minutes a block on two cores)
    parity  the bundled model pruned by ICP on the GPU, in float32 and bfloat16, and on the CPU

Shares are of the rate of bfloat16 products, in all phases; FLOPs are those of
`icp_jax.planning.cost`.
The record is written after every part, so that what was measured survives a later failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import common
import numpy as np
from gpu_parity import parity
from gpu_table import PHASES, table
from prune_job import SHAPES, hf_config

PARTS = ("rates", "steps", "prune", "torch", "first", "parity")
SIDES = Path(__file__).with_name("gpu_sides.py")
VOCAB = {"opt-6.7b": 50272, "llama-7b": 32000}


def checkpoint(job, folder: Path) -> int:
    """A random float16 checkpoint; tensors are windows of one pool of random numbers."""
    rng = np.random.default_rng(job["seed"])
    pool = rng.standard_normal((1 << 26) + (1 << 24), np.float32)
    scaled: dict[float, np.ndarray] = {}

    def tensor(p):
        count = int(np.prod(p.shape))
        if len(p.shape) == 1:
            return 0.02 * pool[:count] + (1 if "norm.weight" in p.name else 0)
        scale = p.shape[-1] ** -0.5
        if scale not in scaled:
            scaled[scale] = (pool * np.float32(scale)).astype(np.float16)
        if count > len(pool):  # an embedding
            return np.resize(scaled[scale], p.shape)
        start = int(rng.integers(0, len(pool) - count))
        return scaled[scale][start : start + count].reshape(p.shape)

    return common.write_checkpoint(folder, hf_config(job), "float16", tensor)


def environment(job) -> dict[str, str]:
    """The children's: the pool no larger than asked for."""
    found = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    found["XDG_CACHE_HOME"] = job["cache"]
    if total := card("memory.total"):
        found["XLA_CLIENT_MEM_FRACTION"] = f"{job['device_mib'] / int(total):.6f}"
    return found


def card(field: str) -> str:
    """What nvidia-smi says of the card; empty where there is none."""
    asked = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def part(name: str, job, scratch: Path) -> dict:
    """A part of `gpu_sides.py`."""
    (scratch / "job.json").write_text(json.dumps(job))
    code = [sys.executable, str(SIDES), name, str(scratch / "job.json")]
    variables = environment(job)
    if name != "steps":
        variables.pop("XLA_CLIENT_MEM_FRACTION", None)
    platform = "cpu" if name == "torch" else job["platform"] if name == "first" else ""
    if platform:
        variables["JAX_PLATFORMS"] = platform
    done = subprocess.run(code, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def prune(job, scratch: Path, variables: dict[str, str]) -> dict:
    """`icp-jax prune` and what its record says; what the card says, and the plan, beside it."""
    out = scratch / "pruned"
    code = [sys.executable, "-m", "icp_jax.cli", "prune", job["model"], str(out), "--json"]
    code += ["--data", job["tokens"], "--samples", str(job["samples"])]
    code += ["--seq-len", str(job["length"]), *job["options"]]
    started, in_use, said = time.perf_counter(), 0, []
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    run = subprocess.Popen(code, env=variables, text=True, **pipes)

    def listen():  # a line a phase
        for line in run.stderr:
            said.append((round(time.perf_counter() - started, 2), line.rstrip()))
            print(*said[-1], flush=True)

    listener = threading.Thread(target=listen)
    listener.start()
    while run.poll() is None:
        time.sleep(1)
        in_use = max(in_use, int(card("memory.used") or 0))
    listener.join()
    seconds = time.perf_counter() - started
    if run.returncode:
        raise RuntimeError(f"icp-jax prune ended with status {run.returncode}")
    record = json.loads((out / "icp_run.json").read_text())
    found = {
        "seconds": seconds,
        "said": said,
        "card_mib": in_use,
        **{key: record[key] for key in ("peak_device_mib", "peak_host_mib", "sparsity")},
        "memory": record["config"]["memory"],
        "remedies": record["remedies"],
        "errors": [block["error"] for block in record["blocks"]],
        "blocks": [block["seconds"] for block in record["blocks"]],
    }
    found["phases"] = {p: sum(b.get(p, 0.0) for b in found["blocks"]) for p in PHASES}
    found["phases"]["other"] = seconds - sum(found["phases"].values())
    shutil.rmtree(out)
    code[code.index("prune")] = "plan"  # its programs are compiled; it writes nothing
    asked = subprocess.run(code, env=variables, stdout=subprocess.PIPE, text=True)
    # a plan that fails says why by itself, and must not cost what was measured
    found["planned"] = None if asked.returncode else json.loads(asked.stdout)["peak"]
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="opt-6.7b")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=[p for p in PARTS if p != "first"]
    )
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--torch-blocks", type=int, default=3)
    parser.add_argument("--first-blocks", type=int, default=1)
    parser.add_argument("--platform", default="", help="of JAX, for the part first: cpu, cuda")
    parser.add_argument("--dtype", default="auto", help="for the part first")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--device-mib", type=int, default=8192, help="JAX's pool")
    parser.add_argument("--options", default="--device-memory 7.8GB", help="of icp-jax prune")
    parser.add_argument("--cache", default="", help="where compiled programs are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a name under results/; without it nothing is written")
    parser.add_argument("--folder", type=Path, default=common.RESULTS, help="instead of results/")
    parser.add_argument("--show", help="print the table of a result, and measure nothing")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.show:
        print(table(json.loads((args.folder / args.show).read_text())))
        return
    root = str(Path(__file__).parent.parent)
    os.environ["JAX_PLATFORMS"] = "cpu"  # of this process: the card is the children's
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    from prune_job import linears

    from icp_jax.config import PruneConfig
    from icp_jax.models import make_family
    from icp_jax.planning.budgets import budgets

    job = vars(args) | {"vocab": VOCAB.get(args.shape, 1024), "seq_len": args.length}
    job |= {"heads": SHAPES[args.shape].heads, "options": args.options.split()}
    job |= {"out": None, "folder": None}  # no paths in the record
    family = make_family(hf_config(job))
    job["budgets"] = budgets(family, [linears(job)] * args.blocks, PruneConfig())
    settings = {k: v for k, v in job.items() if k not in ("budgets", "out", "folder", "cache")}
    record = {**common.provenance(), "card": card("name,driver_version"), "settings": settings}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        job["cache"] = args.cache or str(scratch / "cache")
        job["model"], job["tokens"] = str(scratch / "model"), str(scratch / "ids.npy")
        if {"steps", "prune", "torch", "first"} & {*args.parts}:
            started = time.perf_counter()
            record["checkpoint_bytes"] = checkpoint(job, Path(job["model"]))
            count = 2 * job["samples"] * job["length"]
            ids = np.random.default_rng(1).integers(3, job["vocab"], count, np.int32)
            np.save(job["tokens"], ids)
            print(f"checkpoint: {time.perf_counter() - started:.1f} s", flush=True)
        for each in args.parts:
            started = time.perf_counter()
            try:
                run = {"prune": prune, "parity": parity}.get(each)
                record[each] = (
                    run(job, scratch, environment(job)) if run else part(each, job, scratch)
                )
            except (OSError, ValueError, RuntimeError, subprocess.CalledProcessError):
                # a child that failed: the parts to come are worth having all the same
                record[each] = {"failed": traceback.format_exc()[-4000:]}
                print(record[each]["failed"], flush=True)
            print(f"{each}: {time.perf_counter() - started:.1f} s", flush=True)
            if args.out:
                common.write(args.out, record, args.folder)
    if "phases" in record.get("prune", {}) and "bfloat16" in record.get("rates", {}):
        print(table(record))


if __name__ == "__main__":
    main()
