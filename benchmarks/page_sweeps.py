"""The results page: figure 4 of the paper, from sweeps over alpha and beta."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from page_text import measured, read, there

MODELS = ("opt-pydoc", "stories260K")
FILE = "alpha_beta_{}.json"
PICTURE = "alpha-beta.svg"
SALT = "icp-jax"


def figure4() -> str:
    """The picture, and what the best points are."""
    best = []
    for name in _models():
        low = min(read(FILE.format(name))["points"], key=_perplexity)
        best.append(
            f"{name}: best at α {low['alpha']:g}, β {low['beta']:g} ({_perplexity(low):.2f})."
        )
    sources = "\n\n".join(measured(FILE.format(name)) for name in _models())
    return f"""\
### α × β

Figure 4 of the paper: perplexity at 70% for each share of the last block (α) and each share that q,
k and v give up (β). One command makes it: `icp-jax sweep alpha_beta --out alpha-beta`.

![Perplexity over α and β as a heat map]({PICTURE})

{" ".join(best)}

{sources}
"""


def numbers() -> dict[str, list[list[float]]]:
    """[alpha, beta, perplexity] of every point, by model."""
    return {
        name: [[p["alpha"], p["beta"], _perplexity(p)] for p in read(FILE.format(name))["points"]]
        for name in _models()
    }


def draw() -> str:
    """The heat maps as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    for axes, (name, points) in zip(
        figure.subplots(1, len(_models()), squeeze=False)[0], numbers().items(), strict=True
    ):
        alphas, betas = (sorted({p[k] for p in points}) for k in (0, 1))
        grid = [[_at(points, alpha, beta) for beta in betas] for alpha in alphas]
        axes.imshow(grid, cmap="viridis_r", aspect="auto")
        low, high = min(map(min, grid)), max(map(max, grid))
        for row, values in enumerate(grid):
            for column, value in enumerate(values):
                ink = "black" if value < (low + high) / 2 else "white"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink)
        axes.set_xticks(range(len(betas)), [f"{b:g}" for b in betas])
        axes.set_yticks(range(len(alphas)), [f"{a:g}" for a in alphas])
        axes.set_xlabel("β")
        axes.set_ylabel("α")
        axes.set_title(f"{name} at 70 %: perplexity")
    same = mock.patch.dict(os.environ, SOURCE_DATE_EPOCH="0")  # the file says when it was drawn
    with tempfile.TemporaryDirectory() as folder, same:
        path = Path(folder) / PICTURE
        with matplotlib.rc_context({"svg.hashsalt": SALT}):
            figure.savefig(path)
        return path.read_text()


def _models() -> list[str]:
    return [name for name in MODELS if there(FILE.format(name))]


def _at(points: list[list[float]], alpha: float, beta: float) -> float:
    return next(p for a, b, p in points if (a, b) == (alpha, beta))


def _perplexity(point: dict[str, Any]) -> float:
    return point["perplexity"]
