"""The results page: what each piece of icp+ brings and costs."""

from __future__ import annotations

import statistics
from typing import Any

from page_text import FROM_PAGE, read, table

FILE = "plus.json"
NAMES = {
    "opt-pydoc": "The bundled OPT",
    "stories260K": "stories260K",
    "smollm2": "SmolLM2-135M-Instruct",
}
FIRST = "icp"
ZEROS = ("0.5", "0.6", "0.7", "2:4")


def plus() -> str:
    found = read(FILE)
    parts = [_model(found, model) for model in NAMES if model in found["models"]]
    return """\
### Piece by piece: icp+

On the same calibration windows: `icp`; the same with one re-tune of the pruned block; `icp+`, which
has no compensation, and prunes each block in three steps with a re-tune after each; both with ALPS
as the solver (`--prune.solver alps`); and `icp+` followed by one epoch of the global pass
(`--global-epochs 1`), a tenth of the windows held out. The ratio is to `icp` with the same zeros,
rate and seed. Perplexities are means over the seeds, with the range. The ratio of the seconds is a
median, left out where other work ran beside; the first run of a kind also compiles.

""" + "\n".join(parts)


def _model(found: dict[str, Any], model: str) -> str:
    facts = found["models"][model]
    points = [row for row in found["points"] if row["model"] == model]
    also = any("also" in row for row in points)
    head = ["zeros", "method", "lr", "seeds", "perplexity", *(["other text"] if also else [])]
    times = [] if facts["busy"] else ["time of icp"]
    rows = [
        _row(points, zeros, route, lr, also, not facts["busy"])
        for zeros in ZEROS
        for route, lr in sorted({(r["route"], r["lr"]) for r in points if r["zeros"] == zeros})
    ]
    windows, dense = facts["windows"], facts["dense"]
    other = f", {dense['also']:.2f} on the other text" if also else ""
    return f"""\
#### {NAMES[model]}

{windows[0]} windows of {windows[1]} tokens. Dense: {dense["perplexity"]:.2f}{other}.

{table([*head, "of icp", *times], rows)}

[{FILE}]({FROM_PAGE}/{FILE}): {facts["machine"]}; commit {facts["commit"][:7]}; `{facts["command"]}`
"""


def _row(
    points: list[dict[str, Any]], zeros: str, route: str, lr: float, also: bool, timed: bool
) -> list[str]:
    def of(route: str) -> dict[int, dict[str, Any]]:
        same = [r for r in points if (r["zeros"], r["route"], r["lr"]) == (zeros, route, lr)]
        return {row["seed"]: row for row in same}

    ours, first = of(route), of(FIRST)
    both = sorted(ours.keys() & first.keys())
    ratios, times = (
        [ours[seed][key] / first[seed][key] for seed in both] for key in ("perplexity", "seconds")
    )
    asked = zeros if ":" in zeros else f"{float(zeros):.0%}"
    cells = [asked, route, f"{lr:g}", str(len(ours)), _spread(ours, "perplexity")]
    cells += [_spread(ours, "also")] if also else []
    cells.append(f"{statistics.mean(ratios):.2f}" if ratios else "")
    if timed:
        cells.append(f"{statistics.median(times):.1f}" if times else "")
    return cells


def _spread(rows: dict[int, dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows.values() if key in row]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}-{max(values):.1f})"
