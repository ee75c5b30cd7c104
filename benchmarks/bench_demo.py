"""What `make demo` shows, with the error after every block: benchmarks/results/demo.json.

python benchmarks/bench_demo.py
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import common

from icp_jax.demo import demo

SPARSITY = 0.7


def main() -> None:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        result = demo(out, SPARSITY)
        for row in result["methods"]:
            run = json.loads((out / row["method"] / "icp_run.json").read_text())
            row["errors"] = [block["error"] for block in run["blocks"]]
            print(row, flush=True)
    shown = {key: result[key] for key in ("model", "dense", "methods")}
    record = {**common.provenance(), "load_before": load, **shown}
    print(common.write("demo.json", record))


if __name__ == "__main__":
    main()
