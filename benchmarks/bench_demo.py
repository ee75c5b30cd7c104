"""What `make demo` shows, with the error after every block: benchmarks/results/demo.json.

    python benchmarks/bench_demo.py
    python benchmarks/bench_demo.py --model .demo-real/SmolLM2-135M-Instruct  # demo_real.json

The second line is `make demo-real`, which fetches the model.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import common

from icp_jax.demo import demo
from icp_jax.demo_model import demo_model

SPARSITY, REAL_SPARSITY = 0.7, 0.5
SHOWN = ("model", "calibration", "dense", "methods", "prompt", "texts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    model, load = parser.parse_args().model, os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        result = demo_model(model, out, REAL_SPARSITY) if model else demo(out, SPARSITY)
        if not model:
            add_errors(result, out)
    shown = {key: result[key] for key in SHOWN if key in result}
    record = {**common.provenance(), "load_before": load, **shown}
    print(common.write("demo_real.json" if model else "demo.json", record))


def add_errors(result: dict[str, Any], out: Path) -> None:
    """Add the error after every block to the row of each method."""
    for row in result["methods"]:
        run = json.loads((out / row["method"] / "icp_run.json").read_text())
        row["errors"] = [block["error"] for block in run["blocks"]]
        print(row, flush=True)


if __name__ == "__main__":
    main()
