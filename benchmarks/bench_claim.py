"""The claim on the bundled model: held-out perplexity by method, sparsity and calibration seed.

    python benchmarks/bench_claim.py                       # benchmarks/results/claim.json
    python benchmarks/bench_claim.py --patterns 2:4 4:8 2:4+int4 2:4+int3 4:8+int4 4:8+int3 \\
        --methods sparsegpt icp --out claim_patterns.json

The demo's settings throughout (`icp_jax.demo.demo_config`); the seed draws the calibration
windows and orders the samples. Held-out perplexity on the whole of `heldout.txt`.
"""

from __future__ import annotations

import argparse
import statistics
import time

import common

from icp_jax import QuantConfig, api
from icp_jax.demo import BUNDLED, METHODS, demo_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsities", type=float, nargs="*", default=[0.5, 0.6, 0.7, 0.8])
    parser.add_argument("--patterns", nargs="*", default=[])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="claim.json")
    args = parser.parse_args()

    model = api.load(BUNDLED)
    heldout = BUNDLED / "heldout.txt"
    dense = api.evaluate(model, heldout)
    print(f"dense {dense.perplexity:.3f}", flush=True)
    targets = [{"pattern": p} for p in args.patterns]
    targets = targets or [{"sparsity": s} for s in args.sparsities]
    rows = []
    for seed in range(args.seeds):
        for target in targets:
            for method in args.methods:
                config = demo_config(method, 0.7, BUNDLED, seed)
                tokens = api.calibrate(
                    model,
                    config.calibration.data,
                    samples=config.calibration.samples,
                    seed=seed,
                    overlap=config.calibration.overlap,
                )
                started = time.perf_counter()
                settings = dict(target)
                pattern, _, bits = settings.get("pattern", "").partition("+int")
                if pattern:
                    settings["pattern"] = pattern
                quant = QuantConfig(bits=int(bits)) if bits else None
                if pattern:
                    settings["sparsity"] = None
                order = seed if method == "icp" else None
                pruned, _ = api.prune(
                    model, tokens, config.prune, config.compensate, quant, seed=order, **settings
                )
                seconds = time.perf_counter() - started
                found = api.evaluate(pruned, heldout).perplexity
                rows.append({**target, "method": method, "seed": seed, "perplexity": found})
                print(f"{target} {method} seed {seed}: {found:.3f} ({seconds:.1f} s)", flush=True)

    table, orders = summarise(rows, targets, args.methods)
    record = {**common.provenance(), "dense": dense._asdict(), "table": table, "orders": orders}
    print(common.write(args.out, {**record, "rows": rows}))


def summarise(
    rows: list[dict], targets: list[dict], methods: list[str]
) -> tuple[list[dict], list[dict]]:
    """Mean and spread a target and method, and whether the expected order holds."""
    table, orders = [], []
    for target in targets:
        means = {}
        for method in methods:
            values = [
                row["perplexity"]
                for row in rows
                if row["method"] == method and target.items() <= row.items()
            ]
            means[method] = statistics.mean(values)
            spread = {"mean": means[method], "min": min(values), "max": max(values)}
            table.append({**target, "method": method, **spread})
        held = {"icp_lowest": min(means, key=means.__getitem__) == "icp"}
        if len(means) == len(METHODS):
            held["magnitude_highest"] = max(means, key=means.__getitem__) == "magnitude"
            held["sparsegpt_at_or_below_wanda"] = means["sparsegpt"] <= means["wanda"]
        orders.append({**target, **held})
        print(target, {k: round(v, 2) for k, v in means.items()}, held)
    return table, orders


if __name__ == "__main__":
    main()
