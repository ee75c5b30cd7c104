"""SmolLM2-135M-Instruct, a real trained Llama, beside the authors' code on the same windows.

    icp-jax convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2
    python benchmarks/bench_smollm2.py --model smollm2 --reference REFERENCE

REFERENCE has `smollm2_calibration.npy` [32, 512], `smollm2_evaluation.npy` [24, 512] and
`smollm2.json`, the figures of the authors' code. ICP has their settings: one epoch at 5e-4, uniform
sparsity. Its seeds are orders of the samples; the other methods have no randomness. A result file
keeps its points; running again adds the missing ones.

    python benchmarks/bench_smollm2.py --model smollm2 --reference REFERENCE --orders 0 1 2 3

prunes by SparseGPT at 70 % with the same windows in several orders, which changes nothing but
rounding: one run is one draw, so the mean is held against the authors'. Order 0 is the file's;
order k is `numpy.random.default_rng(k).permutation`. Their figures stay in the result file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import common
import numpy as np
from bench_defaults import MEASURED, UNIFORM, measure

import icp_jax

OUT, ORDERS = "smollm2.json", "smollm2_orders.json"
SPARSITIES = (0.7, 0.6, 0.5)
ICP = {"lr": 5e-4, "epochs": 1, **UNIFORM}


def points(seeds: list[int]) -> list[dict]:
    """Method, sparsity and seed of every run; the first seed of all comes first."""
    once = [
        {"method": method, "sparsity": s, "seed": 0}
        for method in ("sparsegpt", "wanda", "magnitude")
        for s in SPARSITIES
    ]
    icp = [{"method": "icp", "sparsity": s, **ICP, "seed": k} for k in seeds for s in SPARSITIES]
    return [*icp[: len(SPARSITIES)], *once, *icp[len(SPARSITIES) :]]


def in_order(tokens: np.ndarray, order: int) -> np.ndarray:
    """The windows in one of their orders."""
    return tokens[np.random.default_rng(order).permutation(len(tokens))] if order else tokens


def orders(model: icp_jax.Model, tokens: np.ndarray, evaluation: np.ndarray, asked: list) -> None:
    """SparseGPT on the windows in each order that the result file lacks."""
    target = common.RESULTS / ORDERS
    found = json.loads(target.read_text()) if target.exists() else {"authors": [], "points": []}
    settings = {"method": "sparsegpt", "sparsity": 0.7}
    for order in asked:
        if any(row["order"] == order for row in found["points"]):
            continue
        row = measure(model, in_order(tokens, order), evaluation, settings, 0)
        found["points"].append({"order": order, **row})
        print(json.dumps(found["points"][-1]), flush=True)
        common.write(ORDERS, {**found, **common.provenance()})


def table(record: dict) -> str:
    """Perplexities by method and sparsity: the mean over seeds and, of several, the range."""
    lines = [f"dense {record['dense_perplexity']:.2f}"]
    lines.append(f"{'':18}" + "".join(f"{s:>22.0%}" for s in SPARSITIES))
    for name, rows in (("authors", record["authors"]), ("icp_jax", record["points"])):
        for method in dict.fromkeys(row["method"] for row in rows):
            line = f"{name + ' ' + method:18}"
            for s in SPARSITIES:
                of = [r for r in rows if (r["method"], r["sparsity"]) == (method, s)]
                line += f"{spread([r['perplexity'] for r in of]):>22}"
            lines.append(line)
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """A mean with its range."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", type=int, nargs="+")
    args = parser.parse_args()
    model = icp_jax.load(args.model)
    tokens = np.load(args.reference / "smollm2_calibration.npy")
    evaluation = np.load(args.reference / "smollm2_evaluation.npy")
    if args.orders:
        return orders(model, tokens, evaluation, args.orders)
    authors = json.loads((args.reference / "smollm2.json").read_text())["runs"]
    target = common.RESULTS / OUT
    rows = json.loads(target.read_text())["points"] if target.exists() else []
    done = [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]
    record = {
        **common.provenance(),
        "dense_perplexity": icp_jax.evaluate(model, evaluation).perplexity,
        "windows": list(tokens.shape),
        "authors": authors,
        "points": rows,
    }
    for point in points(args.seeds):
        if point not in done:
            seed = point.pop("seed")
            rows.append(measure(model, tokens, evaluation, point, seed))
            print(json.dumps(rows[-1]), flush=True)
            common.write(OUT, record)
    print(table(record))


if __name__ == "__main__":
    main()
