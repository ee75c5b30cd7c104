"""What the page of a sweep shows, from the records of its points."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icp_jax.report.command import repeat
from icp_jax.report.numbers import finite, percent, seconds, short
from icp_jax.report.sweep_charts import brief, over_settings, pareto, point, said_of

Record = dict[str, Any]


def page(record: Record, rows: Sequence[Record], name: str) -> Record:
    """The variables of `sweep.html`. record: of sweep.json. rows: of points.jsonl."""
    names = varied(rows)
    done = [row for row in rows if row.get("perplexity") is not None]
    best = min(done, key=lambda row: row["perplexity"], default=None)
    drawn = [over_settings(done, names), pareto(done, names)] if done else []
    return {
        "title": f"Sweep {name}",
        "sentence": _sentence(record, rows, done, names),
        "tiles": _tiles(rows, done, best),
        "charts": [chart for chart in drawn if chart],
        "columns": _columns(rows, names, best),
        "best": best and {"settings": point(best, names), "command": _command(best)},
        "versions": rows[-1].get("versions", {}),
        "device": ", ".join(dict.fromkeys(str(row["device"]) for row in rows if "device" in row)),
    }


def varied(rows: Sequence[Record]) -> list[str]:
    """The settings that differ among the points; all settings if there is one point."""
    names = dict.fromkeys(name for row in rows for name in row["settings"])
    differing = [n for n in names if len({json.dumps(r["settings"].get(n)) for r in rows}) > 1]
    return differing or list(names)


def _sentence(
    record: Record, rows: Sequence[Record], done: Sequence[Record], names: list[str]
) -> str:
    model = Path(str(record.get("model") or "")).name
    said = f"{len(rows)} point{'s' * (len(rows) != 1)}"
    said += f" of {model}" if model else ""
    *most, last = map(brief, names) if names else ("",)
    over = f"{', '.join(most)} and {last}" if most else last
    said += f" over {over}" if over else ""
    left = len(rows) - len(done)
    return f"{said}; {left} without a perplexity." if left else f"{said}."


def _tiles(
    rows: Sequence[Record], done: Sequence[Record], best: Record | None
) -> list[tuple[str, str]]:
    found = [("points", str(len(rows)))]
    if best:
        worst = max(row["perplexity"] for row in done)
        found += [
            ("best perplexity", short(best["perplexity"], 4)),
            ("worst perplexity", short(worst, 4)),
        ]
    return [*found, ("time", seconds(sum(finite(row.get("seconds") for row in rows))))]


def _columns(rows: Sequence[Record], names: list[str], best: Record | None) -> list[Record]:
    """Columns of the table; best: the index of the best point."""
    found = [_column(brief(n), [_cell(row["settings"].get(n)) for row in rows]) for n in names]
    for name, digits in (("perplexity", 4), ("standard_error", 2), ("sparsity", 4)):
        values = [row.get(name) for row in rows]
        if finite(values):
            show = percent if name == "sparsity" else lambda v, d=digits: short(v, d)
            title = "zeros" if name == "sparsity" else name.replace("_", " ")
            found.append(_column(title, [(show(v), v) for v in values]))
    last = [(row.get("errors") or [None])[-1] for row in rows]
    if finite(last):
        found.append(_column("last error", [(short(v), v) for v in last]))
    spent = [row.get("seconds") for row in rows]
    found.append(_column("time", [(seconds(s), s) for s in spent]))
    states = [str(row.get("state", "done")) for row in rows]
    if set(states) != {"done"}:
        found.append(_column("state", [(state, state) for state in states]))
    found[0]["best"] = next((k for k, row in enumerate(rows) if row is best), None)
    return found


def _cell(value: Any) -> tuple[str, Any]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return said_of(value), value if number else str(value or "")


def _column(name: str, cells: Sequence[tuple[str, Any]]) -> Record:
    number = all(not isinstance(value, str) for _, value in cells)
    return {"name": name, "cells": list(cells), "number": number}


def _command(row: Record) -> str:
    config = row.get("config")
    if not config:
        return ""
    return repeat({**config, "out": config.get("out") or "OUT"})
