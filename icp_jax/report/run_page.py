"""What the page of one run shows, from its record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from icp_jax.report.command import repeat
from icp_jax.report.numbers import finite, mebibytes, percent, seconds, short
from icp_jax.report.run_charts import block_row, charts_of

COLUMNS: dict[
    str, tuple[str, Callable[[Any], str]]
] = {  # of the table of blocks: key of `block_row` -> name, how it is shown
    "block": ("block", str),
    "sparsity": ("sparsity", lambda v: percent(v, 2)),
    "mean": ("error", short),
    "median": ("median", short),
    "95th percentile": ("95th percentile", short),
    "before": ("loss before", short),
    "after": ("loss after", short),
    "pruned": ("pruned", short),
    "retuned": ("re-tuned", short),
    "seconds": ("time", seconds),
}
NAMES = {
    "icp": "ICP",
    "icp+": "ICP+",
    "alps": "ALPS",
    "sparsegpt": "SparseGPT",
    "wanda": "Wanda",
    "magnitude": "Magnitude",
}
Record = dict[str, Any]


def page(record: Record) -> Record:
    """The variables of `run.html`."""
    blocks = record["blocks"]
    return {
        "title": f"{model_name(record)} pruned by {method(record)}",
        "sentence": sentence(record),
        "tiles": tiles(record),
        "charts": charts_of(record),
        "warnings": record.get("warnings", []),
        "remedies": record.get("remedies", []),
        "blocks": table([block_row(block) for block in blocks]),
        "texts": record.get("texts"),
        "command": commands(record),
        "versions": record.get("versions", {}),
        "device": record.get("device"),
        "inputs": record.get("inputs", {}).get("weights", {}),
    }


def commands(record: Record) -> str:
    """What makes the folder again: the pruning, and the `distill` after it if there was one."""
    then = (record.get("global_pass") or {}).get("command")
    return "\n".join([repeat(record["config"]), *([then] if then else [])])


def model_name(record: Record) -> str:
    """The last part of the model's path or id."""
    return Path(str(record["config"].get("model", ""))).name or "model"


def method(record: Record) -> str:
    """The method as it is written in text."""
    name = record["config"]["prune"]["method"]
    return NAMES.get(name, name)


def goal(record: Record) -> str:
    """The pattern or the sparsity that was asked for, and the bits."""
    prune, bits = record["config"]["prune"], record["config"].get("quant", {}).get("bits")
    pattern = prune.get("pattern")
    if pattern and pattern != "unstructured":
        said = f"the pattern {pattern}"
    else:
        said = f"{percent(record.get('sparsity'))} zeros"
    if record.get("pruned_sparsity") is not None:
        said += f" ({percent(record['pruned_sparsity'])} of the layers that were pruned)"
    return f"{said} and {bits} bits" if bits else said


def sentence(record: Record) -> str:
    """What was done, in one sentence."""
    config, count = record["config"], len(record["blocks"])
    calibration = config.get("calibration", {})
    size, shape = record.get("size", 0), record.get("inputs", {}).get("calibration_shape") or []
    images = len(shape) == 4
    samples = shape[0] if shape else calibration.get("samples")
    each = f" of {calibration['seq_len']} tokens" if calibration.get("seq_len") else ""
    data = f"{samples} {'images' if images else 'windows'}{'' if images else each}"
    return (
        f"{method(record)} gave {model_name(record)} {goal(record)} in {size:,} weights of {count} "
        f"block{'s' * (count != 1)}, calibrated on {data}, in {seconds(record.get('seconds'))}."
        f"{_after(record.get('global_pass'))}"
    )


def _after(passed: Record | None) -> str:
    """What the global pass did, in one sentence; empty without one."""
    if not passed:
        return ""
    count, epochs = passed["windows"], passed["epochs"]
    said = f" Then all blocks were tuned together on {count} window{'s' * (count != 1)}"
    return f"{said}, in {epochs} epoch{'s' * (epochs != 1)}."


def tiles(record: Record) -> list[tuple[str, str]]:
    """(name, value) of the figures at the top."""
    blocks = record["blocks"]
    last = blocks[-1]["error"] if blocks else None
    found = [
        ("sparsity", percent(record.get("sparsity"), 2)),
        ("error after the last block", short(last)),
        ("time", seconds(record.get("seconds"))),
        ("peak host memory", mebibytes(record.get("peak_host_mib"))),
    ]
    if record.get("peak_device_mib") is not None:
        found.append(("peak device memory", mebibytes(record["peak_device_mib"])))
    if sizes := record.get("linears"):
        packed, plain = (short(sizes[key] / 1e6) for key in ("packed_bytes", "bytes"))
        found.append(("linears when packed", f"{packed} of {plain} MB"))
    if passed := record.get("global_pass"):
        kl = passed["kl"]
        found.append(("held-out KL", f"{short(kl[0])} → {short(kl[passed['best']])}"))
    found.append(("remedies", str(len(record.get("remedies", [])))))
    return found


def table(rows: list[Record]) -> list[Record]:
    """Columns of the table of blocks, each with (text, value) pairs; those with any value."""
    columns = []
    for key, (name, show) in COLUMNS.items():
        values = [row[key] for row in rows]
        if finite(values):
            cells = [(show(value), value) for value in values]
            columns.append({"name": name, "cells": cells, "number": True})
    undone = [row["undone"] for row in rows]
    if any(undone):
        cells = [(why or "–", why) for why in undone]
        columns.append({"name": "tuning undone", "cells": cells, "number": False})
    return columns
