"""Figures, drawn with matplotlib's file backends, which need no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def error_growth(errors: Mapping[str, Sequence[float]], path: Path, title: str) -> None:
    """Plot the relative error of the sparse stream after each block, one line per method.

    errors: method -> ‖sparse-dense‖²/‖dense‖² after each block. path: image file; its suffix sets
    the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for (method, values), marker in zip(errors.items(), "os^Dvx*", strict=False):
        axes.plot(range(len(values)), values, marker=marker, label=method)
    axes.set_yscale("log")
    axes.set_xticks(range(max(len(values) for values in errors.values())))
    axes.set_xlabel("after block")
    axes.set_ylabel("relative squared error of the hidden states")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
