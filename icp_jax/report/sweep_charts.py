"""The charts of the page of a sweep, from the records of its points."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from icp_jax.report import heat_map, scatter
from icp_jax.report.numbers import finite, short

Record = dict[str, Any]


def point(row: Record, names: Sequence[str]) -> str:
    """A point in words: `alpha 0.7, beta 0.2`."""
    return ", ".join(f"{brief(name)} {said_of(row['settings'].get(name))}" for name in names)


def brief(name: str) -> str:
    """The last part of a setting's name."""
    return name.rpartition(".")[2].replace("_", " ")


def said_of(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return short(value) if number else "–" if value is None else str(value)


def over_settings(done: Sequence[Record], names: list[str]) -> Record:
    """A heat map for two settings, else parallel coordinates."""
    if len(names) == 2:
        grid, columns = _grid(done, names)
        if len(grid) * len(columns) <= 2 * len(done):
            label = f"Perplexity for each {brief(names[0])} and {brief(names[1])}"
            axes = brief(names[0]), brief(names[1])
            svg = heat_map.draw(grid, columns, label, lambda v: short(v, 4), axes)
            values = finite(v for row in grid.values() for v in row)
            return {
                "name": "Perplexity over both settings",
                "note": f"Rows are {axes[0]}, columns {axes[1]}; lower is better.",
                "svg": svg,
                "scale": (short(min(values), 4), short(max(values), 4)),
            }
    rows = [
        {**{name: row["settings"].get(name) for name in names}, "perplexity": row["perplexity"]}
        for row in done
    ]
    label = f"Each point as a line over {', '.join(map(brief, names))} and perplexity"
    note = "A line per point; the lower its perplexity, the stronger. The best is orange."
    svg = scatter.parallel(rows, "perplexity", label)
    return {"name": "Points over their settings", "note": note, "svg": svg}


def _grid(done: Sequence[Record], names: list[str]) -> tuple[dict[str, list[Any]], list[str]]:
    def values(name: str) -> list[Any]:
        found = {json.dumps(row["settings"].get(name)): row["settings"].get(name) for row in done}
        mixed = not all(isinstance(v, int | float) for v in found.values())
        return sorted(found.values(), key=str if mixed else lambda v: v)

    down, across = values(names[0]), values(names[1])
    told = [[said_of(row["settings"].get(name)) for name in names] for row in done]
    at = {(a, b): row["perplexity"] for (a, b), row in zip(told, done, strict=True)}
    columns = [said_of(b) for b in across]
    return {said_of(a): [at.get((said_of(a), b)) for b in columns] for a in down}, columns


def pareto(done: Sequence[Record], names: list[str]) -> Record | None:
    points = [
        (row["sparsity"], row["perplexity"], point(row, names))
        for row in done
        if row.get("sparsity") is not None
    ]
    if len({round(p[0], 4) for p in points}) < 2:
        return None
    best = len(scatter.front(points))
    label = f"Perplexity against sparsity; {best} of {len(points)} points are not beaten in both"
    return {
        "name": "Perplexity against sparsity",
        "note": "The line joins the points that no other beats in both.",
        "svg": scatter.scatter(points, label, "sparsity", "perplexity"),
        "legend": [("ink1", "not beaten in both"), ("ink0 faint", "others")],
    }
