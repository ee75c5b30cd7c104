"""Speed and memory of pruning with compensation: `icp_jax` against the same in plain PyTorch.

    python benchmarks/bench_prune.py --shape opt-125m --out bench_prune.json

Both sides get the same random weights, the same tokens and the same budgets, and run in fresh
processes that take turns; each runs once to compile and warm up, then once for the clock. Peak
memory is that of the whole process (VmHWM). As on the command line, JAX has a compilation cache
on disk: it is empty in the first round, and its peak there is reported beside the median. The
rate of float32 2048³ matmuls is measured on each side in the same run, and the highest is the
rate that shares are shares of. The FLOPs are the algorithm's, equal for all sides, a
multiplication and an addition being two:

    forward     2 a weight and token; causal attention 2·T²·D a sample (half of the square)
    dense       one forward a block
    statistics  a forward without the last linear; n·d² for x xᵀ of a tap (symmetric: half)
    prune       2·d³/3 for the factor of a tap; in²·out for the walk of a linear
    sparse      one forward a block
    compensate  three forwards (a backward is two) a sample, epoch and block but the first

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
import time
from importlib.metadata import version
from pathlib import Path

import common
import numpy as np

SHAPES = {  # hidden size, heads, ffn
    "tiny": (64, 4, 256),
    "small": (256, 8, 1024),
    "opt-125m": (768, 12, 3072),
    "opt-1.3b": (2048, 32, 8192),
}
SIDES = ("jax", "torch-eager", "torch-fused")
PHASES = ("dense", "statistics", "prune", "sparse", "compensate")
CHECKS = {
    "sparsity 0": {"samples": 4, "sparsity": 0.0, "epochs": 0},
    "tiny shape": {"shape": "tiny", "blocks": 2, "samples": 16, "seq_len": 64, "epochs": 1},
}
RATE_SIZE = 2048
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "JAX_PLATFORMS": "cpu"}

# ---------------------------------------------------------------- the same model for all


def linears(job) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) by name."""
    d, _, f = SHAPES[job["shape"]]
    square = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (d, d))
    return {**square, "fc1": (d, f), "fc2": (f, d)}


def hf_config(job) -> dict:
    d, heads, f = SHAPES[job["shape"]]
    return {
        "model_type": "opt",
        "vocab_size": job["vocab"],
        "hidden_size": d,
        "num_attention_heads": heads,
        "ffn_dim": f,
        "num_hidden_layers": job["blocks"],
        "max_position_embeddings": job["seq_len"],
    }


def weights(job):
    """(embedding, blocks) as trees of arrays, `[in, out]`, of variances that keep the scale."""
    d, rng = SHAPES[job["shape"]][0], np.random.default_rng(job["seed"])

    def normal(*shape, scale=1.0):
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    blocks = []
    for _ in range(job["blocks"]):
        block = {
            name: {"kernel": normal(i, o, scale=i**-0.5), "bias": normal(o, scale=0.02)}
            for name, (i, o) in linears(job).items()
        }
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            block[name] = {"scale": np.exp(normal(d, scale=0.3)), "bias": normal(d, scale=0.02)}
        blocks.append(block)
    embed = {
        "tokens": {"embedding": normal(job["vocab"], d)},
        "positions": {"embedding": normal(job["seq_len"] + 2, d, scale=0.3)},
    }
    return embed, blocks


def calibration(job) -> np.ndarray:
    rng = np.random.default_rng((job["seed"], 1))
    return rng.integers(0, job["vocab"], (job["samples"], job["seq_len"]), np.int32)


def flops(job) -> dict[str, float]:
    """The algorithm's FLOPs by phase; see the top of the file."""
    d, _, f = SHAPES[job["shape"]]
    blocks, samples, t = job["blocks"], job["samples"], job["seq_len"]
    tokens, layers = samples * t, linears(job)
    forward = 2.0 * tokens * sum(i * o for i, o in layers.values()) + 2.0 * samples * t * t * d
    taps = (d, d, d, f)  # of q/k/v, out, fc1, fc2
    grams = tokens * sum(tap**2 for tap in taps)
    factors = 2 / 3 * sum(tap**3 for tap in taps)
    walks = sum(i * i * o for i, o in layers.values())
    return {
        "dense": blocks * forward,
        "statistics": blocks * (forward - 2.0 * tokens * f * d + grams),
        "prune": blocks * (factors + walks),
        "sparse": blocks * forward,
        "compensate": 3 * (blocks - 1) * job["epochs"] * forward,
    }


# ---------------------------------------------------------------- one side, in its own process


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
    from icp_jax import cache, heap

    cache.use()  # as the command line does
    heap.one_arena()
    import jax
    import jax.numpy as jnp

    from icp_jax import pipeline, steps, streams
    from icp_jax.config import CompensateConfig, PruneConfig
    from icp_jax.models import make_family

    baseline = memory("VmRSS")
    family, (embed, blocks), tokens = make_family(hf_config(job)), weights(job), calibration(job)
    last = None

    class Source:
        shapes = staticmethod(lambda t: linears(job))
        embed = staticmethod(lambda: embed)
        block = staticmethod(lambda t: blocks[t])

    Source.family = family

    class Sink:
        """Drops the blocks, or saves them whole for the check."""

        def __init__(self, folder):
            self.folder = folder

        def write(self, t, params, grids=None):
            if self.folder:
                flat = {f"{m}.{leaf}": a for m, part in params.items() for leaf, a in part.items()}
                save_block(self.folder, t, flat)

    config = PruneConfig(
        **{k: job[k] for k in ("sparsity", "alpha", "beta", "damping")}, block_size=job["width"]
    )
    compensation = CompensateConfig(job["epochs"], job["lr"], job["gamma"])

    def run(folder):
        nonlocal last
        reports = pipeline.prune_blocks(
            Source, Sink(folder), tokens, config, compensation, dtype="float32", seed=job["seed"]
        )
        last = reports[-1].error
        names = {phase for report in reports for phase in report.seconds}
        return {p: sum(r.seconds.get(p, 0.0) for r in reports) for p in names}

    def final(folder):
        """The sparse stream after the last block, by the compiled functions of the pipeline."""
        size = streams.batch_size(*tokens.shape)
        out = np.empty((*tokens.shape, family.hidden_size), np.float32)
        streams.advance(steps.embed_tokens(family, embed), [tokens], out, size)
        for t in range(job["blocks"]):
            with np.load(folder / f"block{t}.npz") as saved:
                params = {}
                for name, leaf in saved.items():
                    params.setdefault(name.split(".")[0], {})[name.split(".")[1]] = leaf
            apply, params = steps.Apply(family.block_at(t), "float32"), jax.device_put(params)
            streams.advance(
                lambda x, n, a=apply, p=params: steps.forward(a, p, x, n), [out], out, size
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
    tokens, last = torch.from_numpy(calibration(job)), None

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
            heads=SHAPES[job["shape"]][1],
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
    baseline, run, damage, final, matmul = (run_jax if job["side"] == "jax" else run_torch)(job)

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


# ---------------------------------------------------------------- the parent


def spawn(job) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(job)],
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
    results, folders = [], {side: scratch / f"{label}-{side}" for side in SIDES}
    for k in range(rounds):
        results.append({})
        for side in SIDES:
            folders[side].mkdir(exist_ok=True)
            save = str(folders[side]) if k == 0 else None
            results[-1][side] = spawn({**job, "side": side, "save": save})
            total = results[-1][side].get("seconds", results[-1][side]["first"])["total"]
            print(f"{label} {k + 1} {side}: {total:.2f} s", flush=True)
    pairs = (SIDES[:2], SIDES[::2], SIDES[1:])
    return results, {
        "damage": {side: results[0][side]["damage"] for side in SIDES},
        **{" / ".join(p): compare(*(folders[s] for s in p), job["blocks"]) for p in pairs},
    }


def summary(job, rounds: list[dict]) -> dict:
    """Medians; per phase the share of the rate, the ratio to jax, and the time above the floor."""
    work = flops(job)
    work["total"] = sum(work.values())
    rates = {side: max(r[side]["gflops"] for r in rounds) for side in SIDES}
    rate = max(rates.values())
    floors = {p: w / rate / 1e9 for p, w in work.items()}
    sides = {}
    for side in SIDES:
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
        f"{'':12}{'GFLOP':>9}{'floor s':>9}" + "".join(f" |{side:>24}" for side in SIDES),
        f"{'phase':12}{'':18}" + f" |{'s':>9}{'share':>7}{'/jax':>8}" * len(SIDES),
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


def budgets(job) -> list[dict[str, int]]:
    """Zeros by linear and block, from `icp_jax`: both sides get the same."""
    from icp_jax.budgets import budgets
    from icp_jax.config import PruneConfig
    from icp_jax.models import make_family

    config = PruneConfig(sparsity=job["sparsity"], alpha=job["alpha"], beta=job["beta"])
    return budgets(make_family(hf_config(job)), [linears(job)] * job["blocks"], config)


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
    job["budgets"] = budgets(job)
    agree = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        for name, settings in CHECKS.items():
            few = {**job, **settings, "timed": False}
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
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(json.loads(sys.argv[2]))))
    else:
        main()
