"""The results page: SmolLM2-135M, a trained Llama, beside the authors' code."""

from __future__ import annotations

import statistics

from page_text import METHODS, measured, read, share, spread, table

SIDES = {"icp_jax": "points", "authors' code": "authors"}


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
    orders = read("smollm2_orders.json")
    many = [[name, *_in_orders(orders[key])] for name, key in SIDES.items()]
    return f"""\
### Beside the authors' code

SmolLM2-135M-Instruct on the same {windows[0]} windows of {windows[1]} tokens of C4, evaluated on
WikiText-2. Dense: {found["dense_perplexity"]:.2f}. ICP: one epoch at 5e-4, uniform sparsity; its
seeds are orders of the samples. Mean, with the range where there are several seeds.

{table(["method", *map(share, sparsities)], rows)}

At 70% neither leaves a usable model.

{measured("smollm2.json")}

At 70% a perplexity is one draw: the same windows in another order, which only changes rounding,
give another. SparseGPT at 70% in {len(orders["points"])} orders:

{table(["", "mean", "lowest", "highest"], many)}

{measured("smollm2_orders.json")}
"""


def _in_orders(rows: list[dict]) -> list[str]:
    values = [row["perplexity"] for row in rows]
    return [f"{x:.1f}" for x in (statistics.mean(values), min(values), max(values))]


def costs() -> str:
    """Each phase of a run beside its floor, and what is not arithmetic."""
    found = read("fixed.json")
    (run,) = [row for row in found["rows"] if row["method"] == "icp"]
    floors, rate = run["floors"], run["flops_per_second"] / 1e9
    phases = [
        [name, f"{seconds:.0f}", f"{floors[name]:.0f}", f"{seconds / floors[name]:.1f}"]
        for name, seconds in run["phases"].items()
        if name in floors
    ]
    spent = sum(run["phases"].values())
    phases.append(["all", f"{spent:.0f}", f"{sum(floors.values()):.0f}", ""])
    others = [
        [
            name,
            f"{cost['seconds']:.1f}",
            str(cost["times"]),
            f"{cost['seconds'] / run['total']:.1%}",
        ]
        for name, cost in sorted(run["fixed"].items(), key=lambda item: -item[1]["seconds"])
    ]
    return f"""\
### Where the time goes

ICP on SmolLM2-135M-Instruct, one epoch, {run["total"]:.0f} s in all. The floor of a phase is its
FLOPs at the rate of a 2048² product on the same machine, {rate:.0f} GFLOP/s: what is above it is
attention's softmax, norms and activations, smaller products, and other work of the machine.

{table(["phase", "s", "floor, s", "ratio"], phases)}

What is not arithmetic:

{table(["cost", "s", "times", "of the run"], others)}

{measured("fixed.json")}
"""


def _cell(rows: list[dict]) -> str:
    values = [row["perplexity"] for row in rows]
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else ""
    return spread({"mean": sum(values) / len(values), "min": min(values), "max": max(values)})
