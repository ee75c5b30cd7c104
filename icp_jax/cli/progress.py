"""Progress on standard error: one bar for the run, or one line per phase without a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from icp_jax import phases
from icp_jax.cli import interrupts
from icp_jax.phases import Progress, Shares, Watcher


@dataclass
class Done:
    """The finished fraction of a run, weighted by the FLOPs of each phase."""

    shares: dict[tuple[int, str], float] = field(default_factory=dict)
    before: dict[tuple[int, str], float] = field(default_factory=dict)  # fraction at its start

    def expect(self, shares: Shares) -> None:
        self.shares, whole = dict(shares), 0.0
        for key, share in shares.items():
            self.before[key] = whole
            whole += share

    def at(self, block: int, phase: str, done: int, total: int) -> float:
        """The finished fraction of the run, or of the phase if the run has no shares."""
        key = block, phase
        part = done / max(total, 1)
        if key in self.shares:
            return self.before[key] + self.shares[key] * part
        if self.shares:
            after = [self.before[k] for k in self.shares if k[0] > block]
            return min(after, default=1.0) if block >= 0 else 0.0
        return part


def shown(quiet: bool) -> Callable[[str], contextlib.AbstractContextManager[Watcher]]:
    """A function from a label to a context manager that yields a `Watcher`."""
    return _nothing if quiet else _progress


@contextlib.contextmanager
def _nothing(label: str) -> Iterator[Watcher]:
    with interrupts.at_ticks(lambda block, phase, done, total, loss: None) as ticks:
        yield Watcher(ticks)


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Watcher]:
    err = Console(stderr=True)
    if not err.is_terminal:
        with interrupts.at_ticks(_lines(err, label)) as lines:
            yield Watcher(lines)
        return
    columns = (
        TextColumn("{task.fields[label]}{task.fields[block]}"),
        TextColumn(f"{{task.description:<{phases.WIDEST + 1}}}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[loss]:<13}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=err, transient=True) as bar:
        task, whole = bar.add_task("start", total=1.0, label=label, block="", loss=""), Done()

        def tick(block: int, phase: str, done: int, total: int, loss: float | None) -> None:
            said = "" if loss is None else f"loss {loss:.3g}"
            at = whole.at(block, phase, done, total)
            bar.update(task, description=phase, completed=at, block=_at(block), loss=said)

        with interrupts.at_ticks(tick) as ticks:
            yield Watcher(ticks, whole.expect)


def _lines(err: Console, label: str) -> Progress:
    def tick(block: int, phase: str, done: int, total: int, loss: float | None) -> None:
        if done == total:
            said = "" if loss is None else f", loss {loss:.3g}"
            err.print(f"{label}{_at(block)}{phase}{said}", highlight=False)

    return tick


def _at(block: int) -> str:
    """The block as text; empty for -1, a phase outside the blocks."""
    return "" if block < 0 else f"block {block} "
