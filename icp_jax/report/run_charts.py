"""The charts of the page of one run, from its record."""

from __future__ import annotations

from typing import Any

from icp_jax import phases
from icp_jax.report import charts, heat_map
from icp_jax.report.numbers import Number, finite, mebibytes, percent, seconds, short

STATISTICS = {"mean": "error", "median": "error_median", "95th percentile": "error_p95"}
Record = dict[str, Any]


def charts_of(record: Record) -> list[Record]:
    """Name, note, legend and SVG of each chart; without those the record has no figures for."""
    if not record["blocks"]:
        return []
    made = (_sparsity, _growth, _compensation, _retune, _global, _times, _memory)
    return [chart for chart in (make(record) for make in made) if chart]


def times(blocks: list[Record]) -> list[tuple[str, list[Number]]]:
    """(phase, seconds in each block), in the order of the phases."""
    known = [phase.name for phase in phases.ALL]
    names = dict.fromkeys([*known, *(name for block in blocks for name in block["seconds"])])
    rows = [(name, [block["seconds"].get(name) for block in blocks]) for name in names]
    return [(name, row) for name, row in rows if any(finite(row))]


def block_row(block: Record) -> Record:
    """A block's figures as text and as numbers."""
    zeros, size = (sum(layer[key] for layer in block["layers"]) for key in ("zeros", "size"))
    tuned, again = (block.get(kind) or {} for kind in ("compensation", "retune"))
    return {
        "block": block["block"],
        "sparsity": zeros / size if size else None,
        **{name: block.get(key) for name, key in STATISTICS.items()},
        "before": tuned.get("before"),
        "after": tuned.get("after"),
        "pruned": again.get("before"),
        "retuned": again.get("after"),
        "undone": ", ".join(filter(None, (tuned.get("restored"), again.get("restored")))),
        "seconds": sum(finite(block["seconds"].values())),
    }


def growth(blocks: list[Record]) -> dict[str, list[Number]]:
    """Statistic -> the error after each block; those that the record has."""
    rows = {name: [b.get(key) for b in blocks] for name, key in STATISTICS.items()}
    return {name: row for name, row in rows.items() if finite(row)}


def _numbers(record: Record) -> list[int]:
    return [block["block"] for block in record["blocks"]]


def _sparsity(record: Record) -> Record:
    blocks = record["blocks"]
    layers = dict.fromkeys(layer["name"] for block in blocks for layer in block["layers"])
    heat = {name: [_zeros(block, name) for block in blocks] for name in layers}
    values = finite(v for row in heat.values() for v in row)
    overall = percent(record.get("sparsity"), 2)
    label = f"Sparsity of each layer in {len(blocks)} blocks, overall {overall}"
    return {
        "name": "Sparsity of each layer",
        "note": "Share of zeros in each layer of each block.",
        "svg": heat_map.draw(heat, _numbers(record), label),
        "scale": (percent(min(values, default=0)), percent(max(values, default=0))),
    }


def _zeros(block: Record, layer: str) -> Number:
    for found in block["layers"]:
        if found["name"] == layer and found["size"]:
            return found["zeros"] / found["size"]
    return None


def _growth(record: Record) -> Record | None:
    lines = growth(record["blocks"])
    if not lines:
        return None
    first, last = (short(record["blocks"][k].get("error")) for k in (0, -1))
    label = f"Relative error of the hidden states, from {first} after the first block to {last} "
    return {
        "name": "Growth of the error",
        "note": "Squared distance between the pruned and the dense model's hidden states, relative "
        "to the dense ones. The mean is weighted by energy, the others count every token alike.",
        "svg": charts.lines({"": lines}, _numbers(record), f"{label}after the last", "error"),
        "legend": [(f"ink{k}", name) for k, name in enumerate(lines)],
    }


def _compensation(record: Record) -> Record | None:
    return _losses(record, "Compensation", ("before", "after"), "that was tuned")


def _retune(record: Record) -> Record | None:
    return _losses(
        record, "Re-tune", ("pruned", "retuned"), "tuned after the last step of its pruning"
    )


def _losses(record: Record, name: str, keys: tuple[str, str], which: str) -> Record | None:
    rows = [block_row(block) for block in record["blocks"]]
    before, after = ([row[key] for row in rows] for key in keys)
    label = f"Loss before and after the {name.lower()} of {len(finite(after))} blocks"
    svg = charts.pairs(before, after, _numbers(record), label, "loss")
    if not svg:
        return None
    return {
        "name": name,
        "note": f"Mean squared error of each block {which}, before and after.",
        "svg": svg,
        "legend": [("hollow", "before"), ("ink0", "after")],
    }


def _global(record: Record) -> Record | None:
    """The KL of the global pass after every epoch, where there was one."""
    found = record.get("global_pass")
    if not found or not finite(found["kl"]):
        return None
    rows = {"held out": found["kl"], "while tuned on": [None, *found["training_kl"]]}
    epochs, count = list(range(len(found["kl"]))), found["heldout_windows"]
    kept = f"epoch {found['best']} was the best" if found["best"] else "no epoch was better"
    label = f"KL from the dense model's predictions after each of {len(epochs) - 1} epochs"
    return {
        "name": "Global pass",
        "note": "KL divergence, in nats per token, from the dense model's predictions: before, and "
        f"after each epoch that tuned all blocks together. On {count} held-out "
        f"window{'s' * (count != 1)} {kept}; the better weights were written.",
        "svg": charts.lines({"": rows}, epochs, label, "nats per token", log=False, after="epoch"),
        "legend": [(f"ink{k}", name) for k, name in enumerate(rows)],
    }


def _times(record: Record) -> Record | None:
    spent = dict(times(record["blocks"]))
    if not spent:
        return None
    total = sum(sum(finite(row)) for row in spent.values())
    rest = (record.get("seconds") or total) - total
    note = f"{seconds(total)} in the blocks"
    more = "the global pass, " if record.get("global_pass") else ""
    note += f", {seconds(rest)} for {more}reading, exporting and checking." if rest > 0 else "."
    label = f"Seconds of each phase in {len(record['blocks'])} blocks"
    return {
        "name": "Time by phase",
        "note": note,
        "svg": charts.stacked(spent, _numbers(record), label, "seconds"),
        "legend": [(f"ink{k % charts.INK}", name) for k, name in enumerate(spent)],
    }


def _memory(record: Record) -> Record | None:
    """The plan of each phase beside the measured peak, where the run was planned."""
    plan = record.get("plan")
    if not plan:
        return None
    where = "host" if record.get("peak_device_mib") is None else "device"
    peak = record.get(f"peak_{where}_mib")
    rows = {phase["name"]: phase[where] / 2**20 for phase in plan["phases"]}
    said = mebibytes(peak)
    label = f"Planned {where} memory of each phase; measured peak {said}"
    svg = charts.bars(rows, label, mebibytes, peak)
    note = f"Planned {where} memory of each phase. The line is the measured peak, {said}."
    return {"name": "Memory beside the plan", "note": note, "svg": svg}
