"""The results page: time and memory, and how the two bundled models came about."""

from __future__ import annotations

import statistics
from typing import Any

from page_text import measured, read, share, table, there

PHASES = ("dense", "statistics", "prune", "sparse", "compensate")
SIDES = {
    "jax": "icp_jax",
    "jax-disk": "icp_jax, streams on disk",
    "torch-eager": "PyTorch, eager attention",
    "torch-fused": "PyTorch, fused attention",
}
SPEED = {"OPT-125M": "bench_prune.json", "OPT-1.3B": "bench_prune_opt-1.3b.json"}


def speed() -> str:
    parts = [_speed(name, file) for name, file in SPEED.items()]
    return """\
## Speed and memory beside PyTorch

A plain PyTorch implementation of the same algorithm runs beside `icp_jax` in one session, on two
blocks of a model's shape. Seconds are medians over the rounds. The share of the rate compares a
phase's FLOPs with the best of several 2048³ float32 products in the same run.

""" + "\n".join(parts)


def _speed(name: str, file: str) -> str:
    found = read(file)
    sides, job = found["sides"], found["settings"]
    rows = []
    for side in (s for s in SIDES if s in sides):
        told = sides[side]
        seconds = [f"{told['seconds'][p]:.1f}" for p in (*PHASES, "total")]
        peak, rate = f"{told['peak_mib']:.0f}", f"{told['matmul_gflops']:.0f}"
        rows.append([SIDES[side], *seconds, peak, rate])
    ours = sides["jax"]["seconds"]["total"]
    ratio = sides["torch-eager"]["seconds"]["total"] / ours
    fused = sides["torch-fused"]["seconds"]["total"] / ours
    rounds = len(found["rounds"])
    damage = found["agreement"]["as timed"]["damage"]
    apart = max(damage.values()) / min(damage.values()) - 1
    return f"""\
### {name}

{job["samples"]} windows of {job["seq_len"]} tokens, {job["epochs"]} epoch, float32,
rounds: {rounds}.
`icp_jax` is {ratio:.2f} times as fast as PyTorch with eager attention and {fused:.2f} times as fast
as with fused attention, at {share(sides["jax"]["share_of_rate"]["total"])} of the rate. The damage
to the output differs by {apart:.1g} (relative) between the sides.

{table(["side", *PHASES, "total, s", "peak MiB", "GFLOP/s of products"], rows)}

{measured(file)}
"""


def sam() -> str:
    found = read("bench_sam.json")
    rows = []
    labels = {"forward": "encoder, one image", "phases": f"ICP, {found['images']} images"}
    for key, label in labels.items():
        ours, theirs = found[key]["jax"], found[key]["torch"]
        took = (f"{side['seconds']:.1f}" for side in (ours, theirs))
        rows.append([label, *took, str(ours["peak_mib"]), str(theirs["peak_mib"])])
    ours, theirs = (found["phases"][side]["phases"] for side in ("jax", "torch"))
    for phase in PHASES:
        rows.append([f"- {phase}", f"{ours[phase]:.1f}", f"{theirs[phase]:.1f}", "", ""])
    heads = ["", "icp_jax, s", "PyTorch, s", "icp_jax, peak MiB", "PyTorch, peak MiB"]
    return f"""\
### SAM ViT-B

ViT-B's shapes, images of 1024², beside transformers' torch classes. ICP runs on one windowed and
one global block. Rounds: {found["rounds"]}.

{table(heads, rows)}

{measured("bench_sam.json")}
"""


def memory() -> str:
    found, remat = read("memory.json"), read("bench_remat.json")
    flat, limit, large = found["flat"]["rows"], found["limit"], found["opt-6.7b"]
    runs = len(flat["4"]["runs"])
    rows = [[n, f"{r['checkpoint_mib']:.0f}", f"{r['peak_mib']:.0f}"] for n, r in flat.items()]
    mib, ratio = remat["mib"], remat["time_ratio"]
    return f"""\
## Memory

Peak of the process for checkpoints of more and more equal blocks, median of {runs} runs:

{table(["blocks", "checkpoint MiB", "peak MiB"], rows)}

A checkpoint of {limit["checkpoint_mib"]:.0f} MiB was pruned by ICP in a memory cgroup of
{limit["limit_mib"]:.0f} MiB, page cache included, in {limit["seconds"]:.0f} s. Two blocks of
OPT-6.7B's shape in float16 take {large["peak_mib"]} MiB.

{measured("memory.json")}

`--memory.remat True` lowers what one step of compensation holds beside params and moments, at
OPT-125M's shape and 2048 tokens, from {mib["kept"]:.0f} to {mib["again"]:.0f} MiB, for
{ratio:.2f} times the time.

{measured("bench_remat.json")}
"""


def gpu() -> str:
    file = "gpu_opt-6.7b.json"
    found, first = read(file), read("cpu_opt-6.7b_first.json")
    run, job, torch = found["prune"], found["settings"], found["torch"]
    rows = []
    for phase in (*PHASES, "write"):
        block = statistics.median(b[phase] for b in run["blocks"] if phase in b)
        theirs = torch["seconds"].get(phase)
        many = torch["blocks"] - (phase == "compensate")
        told = "" if theirs is None else f"{theirs / many:.2f}"
        rows.append([phase, f"{run['phases'][phase]:.1f}", f"{block:.2f}", told])
    rates, pool, host = found["rates"], job["device_mib"] / 1024, run["peak_host_mib"] / 1024
    start = next(at for at, line in run["said"] if line.endswith("dense"))
    ours, cpu = run["errors"][0], first["first"]["blocks"][0]["error"]
    return f"""\
## One GPU

OPT-6.7B's shape, {job["blocks"]} random float16 blocks, {job["samples"]} windows of
{job["length"]} tokens, one epoch. JAX's pool was capped at {pool:.0f} GiB. One run took
{run["seconds"]:.0f} s. The first {start:.0f} s went to planning, compiling with an empty cache and
hashing. The pool's peak was {run["peak_device_mib"]} MiB, the host's {host:.1f} GiB. The
streams were in pinned host memory. Products ran at
{rates["bfloat16"] / 1e12:.0f} TFLOP/s in bfloat16 and
{rates["float32"] / 1e12:.0f} in float32.

{table(["phase", "all blocks, s", "median block, s", "PyTorch, s a block"], rows)}

The PyTorch column is the plain implementation on the same card: bfloat16 by autocast, fused
attention, streams on the card, {torch["blocks"]} blocks, once. It includes the first use of every
kernel, so its ratios to ours are rough.

{measured(file)}

The first block leaves a relative error of {ours:.5f} on the GPU in bfloat16, and of {cpu:.5f} on
a CPU in float32 with the same checkpoint and tokens.

{measured("cpu_opt-6.7b_first.json")}
"""


def drivers() -> str:
    files = {m: f"bench_drivers_{m}.json" for m in ("opt-pydoc", "opt-125m")}
    found = {model: read(file) for model, file in files.items() if there(file)}
    rows = [
        [f"{model}, {r['method']}", f"{r['icp']:.2f}", f"{r['streaming']:.2f}", f"{r['ratio']:.2f}"]
        for model, told in found.items()
        for r in told["rows"]
    ]
    sources = "\n\n".join(measured(files[model]) for model in found)
    return f"""\
## The two drivers

The jitted `core.icp` and the streaming loop in one process, warm, on the same model and windows:
median seconds of several turns, and the median of their ratios.

{table(["", "jitted, s", "streaming, s", "ratio"], rows)}

{sources}
"""


def sweeps() -> str:
    files = {m: f"bench_sweep_{m}.json" for m in ("opt-pydoc", "stories260K")}
    found = {model: read(file) for model, file in files.items()}
    rows = []
    for model, told in found.items():
        for row in told["rows"]:
            side, took = SWEEPS[row["side"]], f"{row['seconds']:.0f}"
            count = len(told["points"])
            cells = [took, f"{row['share']:.2f}", f"{row['mib']:.0f}"]
            rows.append([f"{model}, {count} points: {side}", *cells])
    return f"""\
## Sweeps

Points of sparsity × alpha (of 12: × learning rate), each side with an empty compile cache.

{table(["", "seconds", "share of the commands", "peak MiB"], rows)}{_growth(found)}

{measured(files["opt-pydoc"])}

{measured(files["stories260K"])}
"""


def _growth(found: dict[str, dict]) -> str:
    """The time of `icp-jax sweep` by the number of points, where it was measured."""
    grown = {model: told["growth"] for model, told in found.items() if "growth" in told}
    if not grown:
        return ""
    counts = list(next(iter(grown.values())))
    rows = [[model, *[f"{told[c]:.0f}" for c in counts]] for model, told in grown.items()]
    head = [f"{c} points" if c != "1" else "1 point" for c in counts]
    return f"\n\nSeconds of `icp-jax sweep`:\n\n{table(['', *head], rows)}"


SWEEPS = {
    "sweep": "one `icp-jax sweep`, evaluation included",
    "commands": "`icp-jax prune` once a point",
    "calls": "jitted `icp` once a point",
    "map": "one `jax.lax.map`",
    "vmap": "one `jax.vmap`",
}


def models() -> str:
    opt, shapes = read("train_opt_pydoc.json"), read("train_sam_shapes.json")
    minutes = (opt["seconds"] + opt["first_stage"]["seconds"]) / 60
    return f"""\
## The trained models

opt-pydoc, `icp_jax/assets/opt-pydoc`: an OPT of {_millions(opt)} M parameters with its own
byte-level BPE, trained on {opt["training_tokens"]:,} tokens of the documentation that every CPython
carries. A tenth of the entries was held out. Training took {minutes:.0f} minutes in two stages.
Between them, features were rescaled within the network's symmetries. This keeps the function and
makes features unequal in size, as in OPTs that were trained for long. A unigram model has a
perplexity of {opt["unigram_perplexity"]:.0f}.

{measured("train_opt_pydoc.json")}

sam-shapes, `benchmarks/assets/sam-shapes`: a SAM of {_millions(shapes)} M parameters, trained for
{shapes["seconds"] / 60:.0f} minutes on {shapes["scenes_seen"]:,} scenes that are drawn on the fly.

{measured("train_sam_shapes.json")}
"""


def _millions(found: dict[str, Any]) -> str:
    return f"{found['parameters'] / 1e6:.1f}"
