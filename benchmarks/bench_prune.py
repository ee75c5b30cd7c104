"""Speed and memory of pruning with compensation: `icp_jax` against the same in plain PyTorch.

    python benchmarks/bench_prune.py --samples 128 --out bench_prune.json
    python benchmarks/bench_prune.py --shape opt-1.3b --rounds 1 --sides torch-eager torch-fused \\
        --out bench_prune_opt-1.3b.json
    python benchmarks/bench_prune.py --shape llama-7b --samples 16 --rounds 1 \\
        --sides torch-eager torch-fused --out bench_prune_llama-7b.json

Both sides get the same random weights, the same tokens and the same budgets, and run in fresh
processes that take turns; each runs once to compile and warm up, then once for the clock. Peak
memory is that of the whole process (VmHWM). PyTorch holds the model in memory; `icp_jax` does as
the command line does: it reads a block from a Hugging Face folder when it comes to it, and has a
compilation cache on disk, which is empty in the first round, whose peak is reported beside the
median. `jax-disk` is the same with `--memory.streams disk`. The rate of float32 2048³ matmuls is
measured on each side in the same run, and the highest is the rate that shares are shares of. The
FLOPs are the algorithm's, equal for all sides, a multiplication and an addition being two:

    forward     2 a weight and token; causal attention 2·T²·D a sample (half of the square)
    dense       one forward a block
    statistics  a forward without the last linear; n·d² for x xᵀ of a tap (symmetric: half)
    prune       2·d³/3 for the factor of a tap; in²·out for the walk of a linear
    sparse      one forward a block
    compensate  three forwards (a backward is two) a sample, epoch and block but the first, less
                the gradient of the input of q, k and v, which no param needs

The PyTorch side is `torch_reference.py`, which says what it leaves out. That all sides compute
the same is checked by the distance of their final hidden states: at sparsity 0, which is the
forward passes alone; on the tiny shape with everything on; and on the models that were timed.
There, scores that differ by a rounding error swap two entries of a mask now and then, and all
that the walk decides later in those columns follows: read beside it how far each side ends from
the dense model (`damage`), and how far the two PyTorch sides are from each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import common
import numpy as np
from prune_job import SHAPES, budgets, checkpoint, flops
from prune_sides import PHASES

SIDE = Path(__file__).with_name("prune_sides.py")
SIDES = ("jax", "jax-disk", "torch-eager", "torch-fused")
CHECKS = {
    "sparsity 0": {"samples": 4, "sparsity": 0.0, "epochs": 0},
    "tiny shape": {"blocks": 2, "samples": 16, "seq_len": 64, "epochs": 1},
}
TINY = {"opt": "tiny", "llama": "tiny-llama"}
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "JAX_PLATFORMS": "cpu"}


def spawn(job, cache: Path) -> dict:
    done = subprocess.run(
        [sys.executable, str(SIDE), json.dumps(job)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(a: Path, b: Path, blocks: int) -> dict[str, float]:
    """Of two saved runs: the relative distance of the final hidden states, and of the masks."""
    x, y = np.load(a / "final.npy"), np.load(b / "final.npy")
    equal = size = 0
    for t in range(blocks):
        with np.load(a / f"block{t}.npz") as left, np.load(b / f"block{t}.npz") as right:
            for name in (n for n in left if n in right and n.endswith(".kernel")):
                one, two = left[name] != 0, right[name] != 0
                equal, size = equal + int(np.sum(one == two)), size + one.size
    distance = np.linalg.norm((x - y).ravel()) / np.linalg.norm(x.ravel())
    return {"hidden_relative_error": float(distance), "masks_differ": 1 - equal / size}


def take_turns(job, rounds: int, scratch: Path, label: str):
    """(rounds of results by side, comparisons of the first round's models)."""
    results, folders = [], {side: scratch / f"{label}-{side}" for side in job["sides"]}
    checkpoint(job, scratch / f"{label}-model")
    job = {**job, "model": str(scratch / f"{label}-model")}
    for k in range(rounds):
        results.append({})
        for side in job["sides"]:
            folders[side].mkdir(exist_ok=True)
            save = str(folders[side]) if k == 0 else None
            cache = scratch / f"{label}-{side}-cache"
            results[-1][side] = spawn({**job, "side": side, "save": save}, cache)
            total = results[-1][side].get("seconds", results[-1][side]["first"])["total"]
            print(f"{label} {k + 1} {side}: {total:.2f} s", flush=True)
    pairs = [("jax", side) for side in job["sides"] if side != "jax"] + [SIDES[-2:]]
    pairs = [pair for pair in pairs if {*pair} <= {*job["sides"]}]
    return results, {
        "damage": {side: results[0][side]["damage"] for side in job["sides"]},
        **{" / ".join(p): compare(*(folders[s] for s in p), job["blocks"]) for p in pairs},
    }


def summary(job, rounds: list[dict]) -> dict:
    """Medians; per phase the share of the rate, the ratio to jax, and the time above the floor."""
    work = flops(job)
    work["total"] = sum(work.values())
    rates = {side: max(r[side]["gflops"] for r in rounds) for side in job["sides"]}
    rate = max(rates.values())
    floors = {p: w / rate / 1e9 for p, w in work.items()}
    sides = {}
    for side in job["sides"]:
        seconds = {p: _median(r[side]["seconds"][p] for r in rounds) for p in (*work, "other")}
        loss = {p: seconds[p] - floors[p] for p in PHASES}
        ran = [p for p in (*PHASES, "total") if work[p]]
        sides[side] = {
            "seconds": seconds,
            "share_of_rate": {p: floors[p] / seconds[p] for p in ran},
            "seconds_above_floor": loss,
            "largest_loss": max(loss, key=loss.get),
            "over_jax": {
                p: _median(r[side]["seconds"][p] / r["jax"]["seconds"][p] for r in rounds)
                for p in ran
            },
            "first_run_seconds": _median(r[side]["first"]["total"] for r in rounds),
            "peak_mib": _median(r[side]["peak_mib"] for r in rounds),
            "first_round_peak_mib": rounds[0][side]["peak_mib"],
            "baseline_mib": _median(r[side]["baseline_mib"] for r in rounds),
            "matmul_gflops": rates[side],
            "cores_busy": _median(r[side]["cores_busy"] for r in rounds),
        }
    return {"rate_gflops": rate, "flops": work, "floor_seconds": floors, "sides": sides}


def _median(values) -> float:
    return statistics.median(values)


def table(job, found: dict) -> str:
    sides, floors = found["sides"], found["floor_seconds"]
    lines = [
        f"{job['shape']}, {job['blocks']} blocks, {job['samples']} x {job['seq_len']} tokens, "
        f"{job['epochs']} epoch(s), float32; rate {found['rate_gflops']:.0f} GFLOP/s",
        "",
        f"{'':12}{'GFLOP':>9}{'floor s':>9}" + "".join(f" |{side:>24}" for side in sides),
        f"{'phase':12}{'':18}" + f" |{'s':>9}{'share':>7}{'/jax':>8}" * len(sides),
    ]
    for p in (*PHASES, "total"):
        line = f"{p:12}{found['flops'][p] / 1e9:9.1f}{floors[p]:9.3f}"
        for side in sides.values():
            line += f" |{side['seconds'][p]:9.3f}"
            if p in side["over_jax"]:
                line += f"{side['share_of_rate'][p]:7.0%}{side['over_jax'][p]:8.2f}"
            else:
                line += " " * 15
        lines.append(line)
    for label, key in (
        ("first run, s", "first_run_seconds"),
        ("peak, MiB", "peak_mib"),
        ("  in the first round", "first_round_peak_mib"),
        ("imports, MiB", "baseline_mib"),
        ("matmul, GFLOP/s", "matmul_gflops"),
        ("cores busy", "cores_busy"),
    ):
        lines.append(f"{label:30}" + "".join(f" |{s[key]:9.1f}{'':15}" for s in sides.values()))
    lines.append("")
    for name, side in sides.items():
        worst = side["largest_loss"]
        lines.append(
            f"{name}: largest loss in {worst}, {side['seconds_above_floor'][worst]:.2f} s above "
            f"the floor"
        )
        if side["cores_busy"] < 0.75 * os.cpu_count():
            lines.append(f"  it had {side['cores_busy']:.1f} cores: was the machine quiet?")
        if side["matmul_gflops"] < 0.75 * found["rate_gflops"]:
            share = side["matmul_gflops"] / found["rate_gflops"]
            lines.append(f"  its own matmuls reach {share:.0%} of the rate")
    return "\n".join(lines)


def agreement(found: dict[str, dict]) -> str:
    lines = [f"{'agreement':28}{'hidden states':>14}{'masks':>10}{'damage':>12}"]
    for title, comparisons in found.items():
        damage = comparisons["damage"]
        lines.append(title)
        for pair, c in comparisons.items():
            if pair != "damage":
                lines.append(
                    f"  {pair:26}{c['hidden_relative_error']:14.1e}{c['masks_differ']:10.1e}"
                    + "".join(f"{damage[side]:12.6f}" for side in pair.split(" / "))
                )
    return "\n".join(lines)


def facts() -> dict:
    """Provenance, what else matters to speed, and whether the commit is all there is."""
    found, here = common.provenance(), Path(__file__).parent
    status = ["git", "status", "--porcelain", "--", "../icp_jax", "*.py"]
    changed = subprocess.run(status, cwd=here, capture_output=True, text=True).stdout
    return {
        **found,
        "uncommitted_changes": bool(changed),
        "versions": found["versions"] | {name: version(name) for name in ("jaxlib", "torch")},
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "MKL_"))},
        "load_before": os.getloadavg()[0],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="opt-125m")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--beta", type=float, default=0.2)
    parser.add_argument("--damping", type=float, default=0.01)
    parser.add_argument(
        "--width", type=int, default=128, help="inputs whose mask is chosen together"
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--gamma", type=float, default=0.87)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES[1:], default=list(SIDES[1:]), help="beside jax"
    )
    parser.add_argument(
        "--torch-batch-tokens",
        type=int,
        default=512,
        help="tokens PyTorch sends forward at once, but at least a sample; one sample of 512 was "
        "both its fastest and its smallest",
    )
    parser.add_argument("--out", help="a name under results/; without it nothing is written")
    return parser.parse_args()


def main() -> None:
    args = parse()
    os.environ |= ENVIRONMENT  # the children's too
    origin = facts()
    job = {k: v for k, v in vars(args).items() if k not in ("out", "rounds")}
    job["sides"] = ["jax", *args.sides]
    job["budgets"] = budgets(job)
    agree = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        for name, settings in CHECKS.items():
            few = {**job, **settings, "timed": False}
            if name == "tiny shape":
                few["shape"] = TINY[SHAPES[args.shape].family]
            few["budgets"] = budgets(few)
            _, agree[name] = take_turns(few, 1, Path(scratch), name)
        rounds, agree["as timed"] = take_turns(
            {**job, "timed": True}, args.rounds, Path(scratch), "round"
        )
    found = summary(job, rounds)
    print()
    print(table(job, found))
    print(agreement(agree))
    record = {
        **origin,
        "settings": job,
        **found,
        "agreement": agree,
        "rounds": rounds,
    }
    if args.out:
        print(common.write(args.out, record))


if __name__ == "__main__":
    main()
