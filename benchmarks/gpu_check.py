"""Everything that only a GPU can tell, from one command.

    make gpu-check OUT=DIR
    python benchmarks/gpu_check.py --out DIR [--stages same,7b] [--minutes 8] [--tiny]
    python benchmarks/gpu_check.py --report DIR
    python benchmarks/gpu_check.py --write-reference

The stages, in the order of their worth, each in a process of its own with its own limit:

    same        masks, kernels and perplexity of small models against the CPU's committed results;
                a killed and resumed run against an undisturbed one
    7b          4 blocks of Llama-2-7B's shape from folder to folder, JAX's pool at 8 GiB, with a
                cold and a warm compilation cache; time by phase, peaks, the time of 32 blocks
    plan        the plan's peaks beside those of `7b`
    compensate  a profile of one step of compensation, and variants of it
    torch       the same blocks in plain PyTorch, warmed up
    tests       `pytest -m gpu`
    sweep       16 points of a sweep in one vmap, and one by one

Every stage writes DIR/<stage>.json as soon as it is done. One that fails leaves its error there;
one that no longer fits into the minutes is dropped, and DIR/check.json says so. `--report` renders
the tables, and says what is met. `--tiny` takes small shapes, and needs no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpu import driver, report
from gpu.stages import named

ROOT = Path(__file__).parents[1]
FULL = {"shape": "llama-7b", "vocab": 32000, "samples": 128, "length": 2048}
FULL |= {"device_mib": 8192, "options": ["--device-memory", "7.8GB"]}
TINY = {"shape": "tiny-llama", "vocab": 128, "samples": 4, "length": 32}
TINY |= {"blocks": 3, "device_mib": 0, "options": ["--device-memory", "4GB"]}
OWN = {
    "blocks": 4,
    "whole": 32,
    "seed": 0,
    "stored": "bfloat16",
}  # whole: the blocks that times are extrapolated to


def job(tiny: bool, scratch: Path, out: Path) -> dict[str, Any]:
    """What the stages are told."""
    shape = {**OWN, **(TINY if tiny else FULL)}
    told = {"tiny": tiny, "scratch": str(scratch), "cache": str(scratch / "cache")}
    told |= {"out": str(out), "seq_len": shape["length"], **shape}
    said = [word for word in sys.argv[1:] if word != str(out)]
    told["command"] = " ".join(["python benchmarks/gpu_check.py", *said]).replace(" --out", "")
    return told


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the folder for the results")
    parser.add_argument("--tiny", action="store_true", help="small shapes: no GPU is needed")
    parser.add_argument("--stages", default="", help="some of them, such as same,7b")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--report", type=Path, help="render the results of this folder")
    parser.add_argument(
        "--write-reference", action="store_true", help="the CPU's results for the stage same"
    )
    args = parser.parse_args(words)
    if sum(map(bool, (args.out, args.report, args.write_reference))) != 1:
        parser.error("give one of --out, --report and --write-reference")
    return args


def main() -> int:
    args = parse()
    if args.report:
        print(report.render(args.report))
        return 0
    if args.write_reference:
        os.environ["JAX_PLATFORMS"] = "cpu"
        sys.path.insert(0, str(ROOT))
        from gpu import same

        print(same.write_reference())
        return 0
    if args.tiny:
        os.environ.setdefault("GPU_CHECK_PLATFORM", "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        given = job(args.tiny, Path(scratch), args.out.resolve())
        told = driver.run_all(named(args.stages), given, args.out, args.minutes)
    print(report.render(args.out))
    return int(bool(told["failed"]))


if __name__ == "__main__":
    sys.exit(main())
