"""Progress on standard error: a bar in a terminal, a line a finished phase elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from icp_jax.cli import interrupts

Tick = Callable[[int, str, int, int, float | None], None]


def shown(quiet: bool) -> Callable[[str], contextlib.AbstractContextManager[Tick]]:
    """How a command shows its progress: by label, a context manager that gives a tick."""
    return _nothing if quiet else _progress


@contextlib.contextmanager
def _nothing(label: str) -> Iterator[Tick]:
    with interrupts.at_ticks(lambda block, phase, done, total, loss: None) as ticks:
        yield ticks


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Tick]:
    err = Console(stderr=True)
    if not err.is_terminal:
        with interrupts.at_ticks(_lines(err, label)) as lines:
            yield lines
        return
    columns = (
        TextColumn("{task.fields[label]}{task.fields[block]}"),
        TextColumn("{task.description:<11}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}% {task.fields[loss]:<13}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("start", total=1, label=label, block="", loss="")

        def tick(block: int, phase: str, done: int, total: int, loss: float | None) -> None:
            shown = "" if loss is None else f"loss {loss:.3g}"
            bar.update(
                task, description=phase, completed=done, total=total, block=_at(block), loss=shown
            )

        with interrupts.at_ticks(tick) as ticks:
            yield ticks


def _lines(err: Console, label: str) -> Tick:
    def tick(block: int, phase: str, done: int, total: int, loss: float | None) -> None:
        if done == total:
            shown = "" if loss is None else f", loss {loss:.3g}"
            err.print(f"{label}{_at(block)}{phase}{shown}", highlight=False)

    return tick


def _at(block: int) -> str:
    """The block's name in a line; -1 is for what has no blocks."""
    return "" if block < 0 else f"block {block} "
