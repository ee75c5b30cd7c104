"""What a sweep shows: a bar over its points, a table at the end, the best point's command."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from icp_jax import checks
from icp_jax.cli import interrupts
from icp_jax.cli.options import OPTION
from icp_jax.config import RunConfig
from icp_jax.sweeps.running import Row, Watch
from icp_jax.sweeps.settings import said


@contextlib.contextmanager
def shown(quiet: bool) -> Iterator[Watch]:
    """Watch a sweep: a bar in a terminal, else one line a point."""
    err = Console(stderr=True)
    if quiet or not err.is_terminal:

        def line(row: Row, done: int, total: int | None) -> None:
            if not quiet:
                of = "" if total is None else f" of {total}"
                text = f"point {done}{of}: {said(row['settings'])}: {_result(row)}"
                err.print(text, highlight=False, soft_wrap=True)

        with interrupts.at_ticks(lambda *event: None) as tick:
            yield Watch(tick, line)
        return
    columns = (
        TextColumn("{task.fields[points]}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[best]}"),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=err, transient=True) as bar:
        task, best = bar.add_task("start", total=None, points="point 1", best=""), [float("inf")]

        def move(block: int, phase: str, done: int, total: int, loss: float | None) -> None:
            bar.update(task, description=phase if block < 0 else f"block {block} {phase}")

        def point(row: Row, done: int, total: int | None) -> None:
            best[0] = min(best[0], row.get("perplexity") or float("inf"))
            of = "" if total is None else f" of {total}"
            lowest = f"best {best[0]:.2f}" if best[0] < float("inf") else ""
            bar.update(task, completed=done, total=total, points=f"{done}{of} points", best=lowest)

        with interrupts.at_ticks(move) as tick:
            yield Watch(tick, point)


def record(found: Any) -> dict[str, Any]:
    """The result of a sweep as JSON values."""
    states = [row["state"] for row in found.rows]
    return {
        "out": str(found.out),
        "points": len(found.rows),
        "states": {state: states.count(state) for state in dict.fromkeys(states)},
        "best": found.best,
        "command": None if found.config is None else command(found.config),
        "exported": None if found.exported is None else str(found.exported),
    }


def swept(found: Any) -> None:
    """Print the points, the lowest perplexity first, and the command of the best one."""
    names = list(dict.fromkeys(name for row in found.rows for name in row["settings"]))
    table = Table(*[name.rpartition(".")[2] for name in names])
    for name in ("zeros", "perplexity", "seconds"):
        table.add_column(name, justify="right")
    for row in sorted(found.rows, key=lambda row: row.get("perplexity") or float("inf")):
        sparsity = row.get("sparsity")
        table.add_row(
            *[f"{row['settings'].get(name, '')}" for name in names],
            "" if sparsity is None else f"{sparsity:.4f}",
            f"{row['perplexity']:.2f}" if row["state"] == "done" else row["state"],
            f"{row['seconds']:.1f}" if "seconds" in row else "",
        )
    out = Console()
    out.print(table)
    lines = [("points", f"{len(found.rows)} in {found.out}")]
    if found.best is not None:
        lines.append(("best", f"{said(found.best['settings'])}: {_result(found.best)}"))
        lines.append(("command", command(found.config)))
    if found.exported is not None:
        lines.append(("output", str(found.exported)))
    for name, text in lines:
        out.print(f"{name:<12} {text}", highlight=False, soft_wrap=True)


def _result(row: Row) -> str:
    if row["state"] != "done":
        return f"{row['state']}, {row.get('why', '')}"
    return f"perplexity {row['perplexity']:.4f}, {row['seconds']:.1f} s"


def command(config: RunConfig) -> str:
    """The command that prunes with these settings; those of the defaults are left out."""
    given, usual = checks.flat(config), checks.flat(RunConfig())
    words = ["icp-jax", "prune", config.model, config.out or "OUT"]
    for setting, value in given.items():
        option = OPTION.get(setting, "")
        if option.startswith("--") and value != usual[setting]:
            if usual[setting] is False:  # a flag takes no value
                words.append(option)
                continue
            for one in value if isinstance(value, tuple) else [value]:
                words += [option, str(one)]
    return shlex.join(words)
