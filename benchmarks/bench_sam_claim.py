"""The claim on the small SAM: single-point IoU by method, sparsity and calibration seed.

    python benchmarks/bench_sam_claim.py --coco FOLDER
    python benchmarks/bench_sam_claim.py --methods icp icp+ --sparsities 0.9 --out sam_plus.json

128 calibration scenes drawn by the seed from 384 that belong to training, held-out scenes to
measure on; the paper's settings for SAM (learning rate 5e-4, γ 0.9, 8 epochs, α 0.85, β 0), the
baselines uniform, and `icp uniform` with α 1. `icp+` re-tunes for --retune-epochs after each of its
three steps, about as many epochs in all. Beside the IoU stands the error of the encoder's
last block, relative to its energy, on the calibration scenes. Magnitude sees no samples: one run
stands for all seeds. --coco: the same for photographs, which the model was not trained on, one
seed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from sam_shapes import HELD_OUT, write_folder

from icp_jax import CompensateConfig, PruneConfig, RetuneConfig, api

MODEL = Path(__file__).parent / "assets" / "sam-shapes"
METHODS = ("magnitude", "wanda", "sparsegpt", "icp", "icp uniform")
CALIBRATION, SAMPLES = 384, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--sparsities", type=float, nargs="*", default=[0.5, 0.7, 0.9])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=300, help="held-out scenes")
    parser.add_argument("--coco", type=Path, help="a COCO directory")
    parser.add_argument("--images", type=int, default=40, help="of COCO")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--retune-epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--alpha", type=float, default=0.85)
    parser.add_argument("--out", default="sam_claim.json")
    args = parser.parse_args()
    rate: dict[str, Any] = {"lr": args.lr, "gamma": 0.9}
    tunings = {
        "icp": {"compensation": CompensateConfig(epochs=args.epochs, **rate)},
        "icp+": {"retune": RetuneConfig(epochs=args.retune_epochs, **rate)},
    }
    model = api.load(args.model)

    with tempfile.TemporaryDirectory() as scratch:
        calibration = write_folder(Path(scratch) / "calibration", 0, CALIBRATION)
        held_out = write_folder(Path(scratch) / "held-out", HELD_OUT, args.scenes)
        places = {"scenes": (f"sa1b:{held_out}", None)}
        if args.coco:
            places["coco"] = (f"coco:{args.coco}", args.images)

        def measure(candidate, names=tuple(places)):
            found = {}
            for name in names:
                data, limit = places[name]
                found[name] = api.evaluate(candidate, data, limit=limit)._asdict()
            return found

        dense = measure(model)
        dense["scenes by box"] = api.evaluate(model, f"sa1b:{held_out}", prompt="box")._asdict()
        print({name: round(row["iou"], 4) for name, row in dense.items()}, flush=True)
        rows = []
        for seed in range(args.seeds):
            pixels = api.calibrate(model, calibration, samples=SAMPLES, seed=seed)
            for sparsity in args.sparsities:
                for method in args.methods:
                    if method == "magnitude" and seed:
                        first = next(
                            r for r in rows if (r["method"], r["sparsity"]) == (method, sparsity)
                        )
                        rows.append({**first, "seed": seed})
                        continue
                    started = time.perf_counter()
                    alpha = {"icp": args.alpha, "icp uniform": 1.0}.get(method)
                    kind = method.partition(" ")[0]
                    config = PruneConfig(method=kind, sparsity=sparsity, alpha=alpha)
                    tuning = {**tunings[kind], "seed": seed} if kind in tunings else {}
                    pruned, blocks = api.prune(model, pixels, config, **tuning)
                    seconds = time.perf_counter() - started
                    names = tuple(places) if not seed else ("scenes",)
                    for name, found in measure(pruned, names).items():
                        row = {"data": name, "sparsity": sparsity, "method": method, "seed": seed}
                        row |= {"iou": found["iou"], "encoder_error": blocks[-1].error}
                        rows.append({**row, "seconds": round(seconds, 1)})
                        print(rows[-1], flush=True)

    record = {**common.provenance(), "settings": settings(args), "dense": dense}
    if args.coco:  # a folder of yours, as in the command above
        record["command"] = record["command"].replace(str(args.coco), "FOLDER")
    record["table"], record["highest"] = summarise(rows, args.sparsities, args.methods)
    for line in record["table"]:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})
    print(record["highest"])
    print(common.write(args.out, {**record, "rows": rows}))


def settings(args: argparse.Namespace) -> dict:
    """What the runs had in common."""
    icp = {"epochs": args.epochs, "lr": args.lr, "gamma": 0.9, "alpha": args.alpha, "beta": 0.0}
    icp["retune_epochs"] = args.retune_epochs
    return {**icp, "calibration_scenes": SAMPLES, "held_out_scenes": args.scenes}


def summarise(rows: list[dict], sparsities: list[float], methods: list[str]):
    """Mean and spread over seeds, and the method of the highest mean."""
    table, highest = [], {}
    for data in sorted({row["data"] for row in rows}, reverse=True):
        for sparsity in sparsities:
            means = {}
            for method in methods:
                key = {"data": data, "sparsity": sparsity, "method": method}
                same = [row for row in rows if key.items() <= row.items()]
                found = [row["iou"] for row in same]
                means[method] = statistics.mean(found)
                spread = {"mean": means[method], "min": min(found), "max": max(found)}
                error = statistics.mean(row["encoder_error"] for row in same)
                table.append({**key, **spread, "encoder_error": error, "seeds": len(found)})
            highest[f"{data} {sparsity}"] = max(means, key=means.__getitem__)
    return table, highest


if __name__ == "__main__":
    main()
