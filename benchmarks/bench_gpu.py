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

Whether a GPU gives what the CPU gives is the stage `same` of `gpu_check.py`, which is also the
short form of this benchmark.
Shares are of the rate of bfloat16 products, in all phases; FLOPs are those of
`icp_jax.planning.cost`.
The record is written after every part, so that what was measured survives a later failure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import common
from gpu import card, model7b
from gpu.phases import PHASES
from gpu_table import table
from prune_job import SHAPES

PARTS = ("rates", "steps", "prune", "torch", "first")
SIDES = Path(__file__).with_name("gpu_sides.py")
VOCAB = {"opt-6.7b": 50272, "llama-7b": 32000}


def part(name: str, job, scratch: Path) -> dict:
    """A part of `gpu_sides.py`, in a process of its own."""
    (scratch / "job.json").write_text(json.dumps(job))
    code = [sys.executable, str(SIDES), name, str(scratch / "job.json")]
    variables = card.environment(job["cache"], job["device_mib"] if name == "steps" else 0)
    platform = "cpu" if name == "torch" else job["platform"] if name == "first" else ""
    if platform:
        variables["JAX_PLATFORMS"] = platform
    done = subprocess.run(code, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def prune(job) -> dict:
    """`icp-jax prune` and what its record says; what the card says, and the plan, beside it."""
    found = model7b.prune(job, job["cache"])
    found["phases"] = {p: sum(b.get(p, 0.0) for b in found["blocks"]) for p in PHASES}
    found["phases"]["other"] = found["seconds"] - sum(found["phases"].values())
    try:  # a plan that fails says why, and must not cost what was measured
        found["planned"] = model7b.plan(job, job["cache"])["peak"]
    except RuntimeError as error:
        found["planned"], found["plan_failed"] = None, str(error)
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
    job = vars(args) | {"vocab": VOCAB.get(args.shape, 1024), "seq_len": args.length}
    job |= {"heads": SHAPES[args.shape].heads, "options": args.options.split()}
    job |= {"out": None, "folder": None}  # no paths in the record
    settings = {k: v for k, v in job.items() if k not in ("out", "folder", "cache")}
    record = {**common.provenance(), "card": card.ask("name,driver_version"), "settings": settings}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        job["cache"] = args.cache or str(scratch / "cache")
        job["scratch"], job["stored"] = name, "float16"
        if {"steps", "prune", "torch", "first"} & {*args.parts}:
            started = time.perf_counter()
            files = model7b.checkpoint(job).iterdir()
            record["checkpoint_bytes"] = sum(file.stat().st_size for file in files)
            print(f"checkpoint: {time.perf_counter() - started:.1f} s", flush=True)
        for each in args.parts:
            started = time.perf_counter()
            try:
                record[each] = prune(job) if each == "prune" else part(each, job, scratch)
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
