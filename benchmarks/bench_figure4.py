"""Figure 4 of the paper, alpha × beta at 70 %, by one `icp-jax sweep alpha_beta` a model.

    python benchmarks/bench_figure4.py
    python benchmarks/bench_figure4.py --stories stories260K --text tinystories-slice.txt

Without options on the bundled model. 25 points, four epochs at 1e-3, 128 windows. Perplexity on
held-out text.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import bench_stories
import common
import numpy as np

import icp_jax
from icp_jax.demo import BUNDLED

SAMPLES = 128
SETTINGS = {"alpha": "prune.alpha", "beta": "prune.beta"}


def stories(model: Path, text: Path, folder: Path) -> dict[str, str]:
    """What the sweep takes of stories260K: windows at random offsets, and held-out windows."""
    stream, heldout = bench_stories.tokens(text, model / "tok512.bin")
    starts = np.random.default_rng(0).integers(0, len(stream) - bench_stories.WINDOW, SAMPLES)
    np.save(folder / "calibration.npy", [stream[s : s + bench_stories.WINDOW] for s in starts])
    np.save(folder / "heldout.npy", heldout)
    files = {"calibration": folder / "calibration.npy", "data": folder / "heldout.npy"}
    return {"model": str(model), **{name: str(path) for name, path in files.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=Path)
    parser.add_argument("--text", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        changes = stories(args.stories, args.text, folder) if args.stories else {}
        swept = icp_jax.sweep("alpha_beta", folder / "sweep", **changes)
    name = args.stories.name if args.stories else BUNDLED.name
    points = [
        {key: row["settings"][setting] for key, setting in SETTINGS.items()}
        | {"perplexity": row["perplexity"], "state": row["state"]}
        for row in swept.rows
    ]
    record = {**common.provenance(), "model": name, "engine": swept.rows[0]["engine"]}
    print(common.write(f"alpha_beta_{name}.json", {**record, "points": points}))


if __name__ == "__main__":
    main()
