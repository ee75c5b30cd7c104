"""The results page: SmolLM2-135M, a trained Llama, beside the authors' code and by settings."""

from __future__ import annotations

from page_text import METHODS, measured, read, share, spread, table


def beside_authors() -> str:
    found = read("smollm2.json")
    windows = found["windows"]
    rows = []
    sparsities = sorted({row["sparsity"] for row in found["points"]})
    for method in METHODS:
        for name, points in (("icp_jax", found["points"]), ("authors' code", found["authors"])):
            of = [row for row in points if row["method"] == method]
            if of:
                cells = [_cell([r for r in of if r["sparsity"] == s]) for s in sparsities]
                rows.append([f"{METHODS[method]}, {name}", *cells])
    return f"""\
### Beside the authors' code

SmolLM2-135M-Instruct on the same {windows[0]} windows of {windows[1]} tokens of C4, evaluated on
WikiText-2. Dense: {found["dense_perplexity"]:.2f}. ICP: one epoch at 5e-4, uniform sparsity; its
seeds are orders of the samples. Mean, with the range where there are several seeds.

{table(["method", *map(share, sparsities)], rows)}

At 70% neither leaves a usable model.

{measured("smollm2.json")}
"""


def settings() -> str:
    found = read("defaults_smollm2.json")
    rows = []
    for row in found["points"]:
        target = row.get("pattern") or share(row["sparsity"])
        alpha, beta = (f"{row[k]:g}" if k in row else "" for k in ("alpha", "beta"))
        cells = [target, f"{row['lr']:g}", str(row["epochs"]), alpha, beta]
        rows.append([*cells, f"{row['perplexity']:.2f}"])
    return f"""\
### What settings ICP wants there

The same windows and text, one seed.

{table(["zeros", "lr", "epochs", "α", "β", "perplexity"], rows)}

{measured("defaults_smollm2.json")}
"""


def _cell(rows: list[dict]) -> str:
    values = [row["perplexity"] for row in rows]
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else ""
    return spread({"mean": sum(values) / len(values), "min": min(values), "max": max(values)})
