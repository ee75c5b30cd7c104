"""The results page: what pruning costs in perplexity and in IoU."""

from __future__ import annotations

import statistics

from page_text import BUSY, METHODS, measured, read, rows_of, share, spread, table

# the names of bench_stories' rows: (sparsity or pattern, method, row)
STORIES = [
    ("50%", {"magnitude": "magnitude unstructured 0.5", "wanda": "wanda unstructured 0.5",
             "sparsegpt": "sparsegpt unstructured 0.5", "icp": "icp unstructured 0.5 alpha 1"}),
    ("70%", {"magnitude": "magnitude unstructured 0.7", "wanda": "wanda unstructured 0.7",
             "sparsegpt": "sparsegpt unstructured 0.7", "icp": "icp unstructured 0.7 alpha 1"}),
    ("2:4", {"magnitude": "magnitude 2:4 0.5", "wanda": "wanda 2:4 0.5",
             "sparsegpt": "sparsegpt 2:4 0.5", "icp": "icp 2:4 0.5"}),
]  # fmt: skip


def readme() -> str:
    """The README's table: held-out perplexity of two models, a row a sparsity or pattern."""
    claim, patterns, stories = (
        read(f"{n}.json") for n in ("claim", "claim_patterns", "stories260K")
    )
    rows = []
    targets = [(share(s), claim, {"sparsity": s}) for s in (0.5, 0.7)]
    for label, found, wanted in [*targets, ("2:4", patterns, {"pattern": "2:4"})]:
        means = {m: row["mean"] for m, row in rows_of(found, **wanted).items()}
        dense = f"{found['dense']['perplexity']:.1f}"
        rows.append(["opt-pydoc", label, dense, *_lowest_bold(means), ""])
    by_name = {row["name"]: row for row in stories["rows"]}
    dense = f"{stories['dense']['perplexity']:.1f}"
    for label, names in STORIES:
        means = {m: by_name[name]["mean"] for m, name in names.items()}
        theirs = f"{mean(by_name[names['icp']]['reference']):.1f}"
        rows.append(["stories260K", label, dense, *_lowest_bold(means), theirs])
    return table(["model", "zeros", "dense", *METHODS.values(), "ICP, authors' code"], rows)


def _lowest_bold(means: dict[str, float]) -> list[str]:
    """A cell a method, empty where it was not measured."""
    told = {m: f"{value:.1f}" for m, value in means.items()}
    told[min(means, key=means.__getitem__)] = f"**{min(means.values()):.1f}**"
    return [told.get(m, "") for m in METHODS]


def real_table() -> str:
    """Perplexity, time and memory of the demo on SmolLM2."""
    found = read("demo_real.json")
    dense = f"{found['dense']['perplexity']:.1f}"
    busy = ", with other work beside it" if found["load_before"] > BUSY else ""
    rows = []
    for row in found["methods"]:
        cells = [METHODS[row["method"]], share(row["sparsity"]), f"{row['perplexity']:.1f}"]
        rows.append([*cells, f"{row['seconds']:.0f}", str(row["peak_host_mib"])])
    head = ["method", "zeros", f"perplexity (dense: {dense})", f"seconds{busy}", "peak MiB"]
    return table(head, rows)


def real() -> str:
    found = read("demo_real.json")
    dense, calibration = found["dense"], found["calibration"]
    return f"""\
## SmolLM2-135M-Instruct

What `make demo-real` prints: a trained Llama from a GGUF file, calibrated on
{calibration["samples"]} windows of {calibration["seq_len"]} tokens of Python's documentation,
evaluated on {dense["tokens"]:,} tokens of other pages of it. One seed and little calibration: a
demo, not a benchmark.

{real_table()}

{measured("demo_real.json")}
"""


def bundled() -> str:
    found = read("claim.json")
    dense = found["dense"]
    rows = []
    for sparsity in sorted({row["sparsity"] for row in found["table"]}):
        named = rows_of(found, sparsity=sparsity)
        rows.append([share(sparsity), *(spread(named[m]) for m in METHODS)])
    seeds = len({row["seed"] for row in found["rows"]})
    return f"""\
## The bundled model

Held-out perplexity of opt-pydoc ({dense["tokens"]:,} tokens, windows of {dense["seq_len"]}). Dense:
{dense["perplexity"]:.2f}. Mean of {seeds} calibration seeds, range in brackets.

{table(["sparsity", *METHODS.values()], rows)}

{measured("claim.json")}
"""


def bundled_patterns() -> str:
    found = read("claim_patterns.json")
    rows = []
    for pattern in dict.fromkeys(row["pattern"] for row in found["table"]):
        named = rows_of(found, pattern=pattern)
        label = pattern.replace("+int", ", ") + (" bits" if "+int" in pattern else "")
        rows.append([label, *(spread(named[m]) for m in ("sparsegpt", "icp"))])
    return f"""\
### n:m patterns and quantization

The same model, text and seeds.

{table(["pattern", "SparseGPT", "ICP"], rows)}

{measured("claim_patterns.json")}
"""


def growth() -> str:
    found = read("demo.json")
    errors = {row["method"]: row["errors"] for row in found["methods"]}
    heads = [f"block {t}" for t in range(len(errors["icp"]))]
    rows = [[METHODS[m], *(f"{e:.4f}" for e in errors[m])] for m in errors]
    return f"""\
### Error growth

The relative squared error of the hidden states after each block, ‖sparse − dense‖² / ‖dense‖², at
{share(round(found["methods"][0]["sparsity"], 3))} sparsity. `make demo` draws the same picture.

![Error growth of four methods, block by block](error-growth.svg)

{table(["method", *heads], rows)}

{measured("demo.json")}
"""


def stories() -> str:
    found = read("stories260K.json")
    by_name = {row["name"]: row for row in found["rows"]}
    rows = []
    for label, names in STORIES:
        rows += [[f"{METHODS[m]}, {label}", *_beside(by_name[names[m]])] for m in METHODS]
    reached = by_name["wanda unstructured 0.7 reached 0.69"]
    rows.append(["Wanda, 69%", *_beside(reached)])
    rows.append(["ICP, 2:4, 4 bits", *_beside(by_name["icp 2:4 0.5 int4"])])
    alpha = [by_name[f"icp unstructured {s} alpha .691"]["mean"] for s in (0.5, 0.7)]
    dense = found["dense"]
    return f"""\
## stories260K, beside the authors' code

Perplexity of a 260K-parameter Llama on held-out stories ({dense["tokens"]:,} tokens, windows of
{dense["seq_len"]}). Dense: {dense["perplexity"]:.2f}. Mean and range over calibration draws.
The authors' Wanda rounds the zeros of a row down and reaches 69% where
70% are asked, so ours stands at both.

{table(["method", "icp_jax", "authors' code"], rows)}

The authors' Llama script ignores α, so these rows have α = 1. With α = 0.691, ICP has
{alpha[0]:.1f} at 50% and {alpha[1]:.1f} at 70%: α does not help on this model of five blocks.

{measured("stories260K.json")}
"""


def _beside(row: dict) -> tuple[str, str]:
    theirs = row["reference"]
    return spread(row), spread({"mean": mean(theirs), "min": min(theirs), "max": max(theirs)})


def sam() -> str:
    found = read("sam_claim.json")
    dense, settings = found["dense"], found["settings"]
    rows, errors = [], []
    for sparsity in (0.5, 0.7, 0.9):
        named = rows_of(found, data="scenes", sparsity=sparsity)
        names = [*METHODS, "icp uniform"]
        rows.append([share(sparsity), *(spread(named[m], times=100) for m in names)])
        errors.append([share(sparsity), *(f"{100 * named[m]['encoder_error']:.2f}" for m in names)])
    heads = ["sparsity", *METHODS.values(), "ICP, α = 1"]
    made, photos = dense["scenes"], dense["coco"]
    return f"""\
## A small SAM

sam-shapes, trained on scenes of overlapping textured shapes. Single-point IoU in percent on
{made["images"]} held-out scenes ({made["masks"]:,} masks), mean and range over calibration seeds.
Dense: {100 * made["iou"]:.2f}, by box {100 * dense["scenes by box"]["iou"]:.2f}. Settings:
{settings["epochs"]} epochs, lr {settings["lr"]}, γ {settings["gamma"]}, α {settings["alpha"]},
β {settings["beta"]:g}, {settings["calibration_scenes"]} calibration scenes.

{table(heads, rows)}

The squared error of the encoder's last block, in percent of its energy:

{table(heads, errors)}

At 50% the methods' ranges overlap: the mask decoder forgives small errors. The model has seen no
photographs. On {photos["images"]} of COCO ({photos["masks"]} masks) the dense IoU is
{100 * photos["iou"]:.1f}, too low to rank methods.

{measured("sam_claim.json")}

{_sam_in_steps()}"""


def _sam_in_steps() -> str:
    found = read("sam_plus.json")
    named = rows_of(found, data="scenes", sparsity=0.9)
    seconds = {
        method: statistics.median(r["seconds"] for r in found["rows"] if r["method"] == method)
        for method in named
    }
    rows = [
        [
            f"`{method}`",
            spread(row, times=100),
            f"{100 * row['encoder_error']:.2f}",
            f"{seconds[method] / seconds['icp']:.1f}",
        ]
        for method, row in named.items()
    ]
    return f"""\
The same at 90%, in a run of its own, beside `icp+`, which prunes in three steps and re-tunes for
{found["settings"]["retune_epochs"]} epochs after each:

{table(["method", "IoU", "error of the last block", "time of icp"], rows)}

{measured("sam_plus.json")}
"""


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
