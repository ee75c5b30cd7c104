"""Figures, drawn with matplotlib's file backends, which need no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

LINES = {"mean": "-", "median": "--", "95th percentile": ":"}


def error_growth(
    errors: Mapping[str, Sequence[float] | Mapping[str, Sequence[float]]], path: Path, title: str
) -> None:
    """Plot the relative error of the sparse stream after each block, a colour per method.

    errors: method -> ‖sparse-dense‖²/‖dense‖² after each block; or method -> line -> such errors,
    for the lines of LINES: that one, which is a mean weighted by energy, and the median and 95th
    percentile of the tokens. path: image file; its suffix sets the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    blocks, drawn = 0, dict[str, None]()
    for k, ((method, given), marker) in enumerate(zip(errors.items(), "os^Dvx*", strict=False)):
        lines = given if isinstance(given, Mapping) else {"mean": given}
        for line, values in lines.items():
            (curve,) = axes.plot(range(len(values)), values, f"C{k}{LINES[line]}{marker}")
            if line == next(iter(lines)):
                curve.set_label(method)
            blocks, drawn[line] = max(blocks, len(values)), None
    for line in drawn if len(drawn) > 1 else ():  # in the legend, once for all methods
        axes.plot([], [], f"k{LINES[line]}", label=line)
    axes.set_yscale("log")
    axes.set_xticks(range(blocks))
    axes.set_xlabel("after block")
    axes.set_ylabel("relative squared error of the hidden states")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
