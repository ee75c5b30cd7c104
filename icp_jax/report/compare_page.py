"""What the page that compares runs shows, from their records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from icp_jax.report import charts
from icp_jax.report.command import repeat, used
from icp_jax.report.numbers import Number, mebibytes, percent, seconds, short
from icp_jax.report.run_page import model_name

Record = dict[str, Any]
Cell = tuple[str, Number | str]  # as shown, as sorted
ASIDE = ("model", "out", "memory.batch_tokens", "memory.remat", "memory.streams")
ROOM = 8  # more differing settings than these are not shown as columns


def page(runs: Sequence[tuple[str, Record]], title: str = "", demo: Record | None = None) -> Record:
    """The variables of `compare.html`. runs: (name, record). demo: the record of a demo."""
    records = [record for _, record in runs]
    names = labels(runs)
    models = list(dict.fromkeys(model_name(record) for record in records))
    return {
        "title": title or f"{len(runs)} runs compared",
        "sentence": _sentence(names, models, demo),
        "columns": _columns(names, records, demo),
        "charts": [_growth(names, records), *_perplexity(names, records)],
        "texts": _texts(demo),
        "commands": [(n, repeat(r["config"])) for n, r in zip(names, records, strict=True)],
        "versions": records[-1].get("versions", {}),
        "device": ", ".join(dict.fromkeys(str(record.get("device")) for record in records)),
    }


def labels(runs: Sequence[tuple[str, Record]]) -> list[str]:
    """The names of the runs, numbered where two are the same."""
    found: list[str] = []
    for name, _ in runs:
        again = sum(one == name or one.startswith(f"{name} (") for one in found)
        found.append(f"{name} ({again + 1})" if again else name)
    return found


def differing(records: Sequence[Record]) -> list[str]:
    """The settings that are not the same in all runs."""
    every = [used(record["config"]) for record in records]
    names = dict.fromkeys(name for settings in every for name in settings)
    return [
        name
        for name in names
        if name not in ASIDE and len({json.dumps(s.get(name)) for s in every}) > 1
    ]


def _sentence(names: list[str], models: list[str], demo: Record | None) -> str:
    what = f"{models[0]}" if len(models) == 1 else f"{len(models)} models"
    said = f"{what} pruned in {len(names)} run{'s' * (len(names) > 1)}: {', '.join(names)}."
    dense = (demo or {}).get("dense", {})
    if "perplexity" in dense:
        said += f" The dense model's perplexity is {short(dense['perplexity'], 4)} on "
        said += f"{dense.get('tokens', 0):,} held-out tokens."
    return said


def _columns(names: list[str], records: Sequence[Record], demo: Record | None) -> list[Record]:
    """Columns of the table, each with a cell per run."""
    last = [record["blocks"][-1] if record["blocks"] else {} for record in records]
    found = [_column("run", [(name, name) for name in names])]
    if any("perplexity" in record for record in records):
        found.append(_numbers("perplexity", [r.get("perplexity") for r in records], 4))
    spars = [record.get("sparsity") for record in records]
    found.append(_column("zeros", [(percent(s, 2), s) for s in spars]))
    for name, key in (("error", "error"), ("median", "error_median"), ("95th", "error_p95")):
        found.append(_numbers(name, [block.get(key) for block in last]))
    spent = [record.get("seconds") for record in records]
    found.append(_column("time", [(seconds(s), s) for s in spent]))
    peaks = [record.get("peak_host_mib") for record in records]
    found.append(_column("peak memory", [(mebibytes(p), p) for p in peaks]))
    remedies = [len(record.get("remedies", [])) for record in records]
    found.append(_column("remedies", [(str(n), n) for n in remedies]))
    for setting in differing(records)[:ROOM]:
        cells = [_cell(used(record["config"]).get(setting)) for record in records]
        name = setting.rpartition(".")[2].replace("_", " ")
        if [shown for shown, _ in cells] != names:
            found.append(_column(name, cells))
    return found


def _cell(value: Any) -> Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return short(value), value
    return ("–", None) if value is None else (str(value), str(value))


def _numbers(name: str, values: Sequence[Number], digits: int = 3) -> Record:
    return _column(name, [(short(value, digits), value) for value in values])


def _column(name: str, cells: Sequence[tuple[str, Any]]) -> Record:
    number = not any(isinstance(value, str) for _, value in cells)
    return {"name": name, "cells": list(cells), "number": number}


def _growth(names: list[str], records: Sequence[Record]) -> Record:
    count = max((len(record["blocks"]) for record in records), default=0)
    curves = {
        name: {"mean": [block.get("error") for block in record["blocks"]]}
        for name, record in zip(names, records, strict=True)
    }
    last = [record["blocks"][-1].get("error") if record["blocks"] else None for record in records]
    ends = ", ".join(f"{n} {short(e)}" for n, e in zip(names, last, strict=True))
    label = f"Relative error of the hidden states; after the last block: {ends}"
    return {
        "name": "Growth of the error",
        "note": "Squared distance between the pruned and the dense model's hidden states, relative "
        "to the dense ones; the mean, weighted by energy.",
        "svg": charts.lines(curves, list(range(count)), label, "relative squared error"),
        "legend": [(f"ink{k % charts.INK}", name) for k, name in enumerate(names)],
    }


def _perplexity(names: list[str], records: Sequence[Record]) -> list[Record]:
    values = {n: r.get("perplexity") for n, r in zip(names, records, strict=True)}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return []
    said = ", ".join(f"{name} {short(value, 4)}" for name, value in known.items())
    label = f"Perplexity on held-out text: {said}"
    svg = charts.bars(known, label, lambda value: short(value, 4))
    return [{"name": "Perplexity", "note": "On held-out text; lower is better.", "svg": svg}]


def _texts(demo: Record | None) -> Record | None:
    if not demo or not demo.get("texts"):
        return None
    return {"prompt": demo.get("prompt", ""), "written": demo["texts"]}
