"""The phases of a run: their names, their order, and the blocks and methods that have them.

`icp_jax.planning.table` has the cost of each phase.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

# (block or -1 outside the blocks, phase, done, total, loss)
Progress = Callable[[int, str, int, int, float | None], None]
Shares = Mapping[tuple[int, str], float]  # (block, phase) -> its fraction of the run


class Phase(NamedTuple):
    """One phase of a run."""

    name: str
    first: int | None = None  # first block with this phase; None: once per run
    tunes: bool = False  # once per epoch of compensation
    exact: bool = False  # computes in float32, regardless of the blocks' dtype

    def of_block(self, t: int, epochs: int) -> bool:
        """Whether block t has this phase. epochs: of compensation; 0 if there is none."""
        return self.first is not None and t >= self.first and (not self.tunes or epochs > 0)

    def times(self, blocks: int, epochs: int) -> int:
        """How often this phase occurs in a run, counting every epoch."""
        if self.first is None:
            return 1
        return max(blocks - self.first, 0) * (epochs if self.tunes else 1)


TOKENIZE = Phase("tokenize")
EMBED = Phase("embed")
DENSE = Phase("dense", first=0)
COMPENSATE = Phase("compensate", first=1, tunes=True)
STATISTICS = Phase("statistics", first=0, exact=True)
PRUNE = Phase("prune", first=0, exact=True)
SPARSE = Phase("sparse", first=0)
WRITE = Phase("write", first=0)
EXPORT = Phase("export")
CHECK = Phase("check")
PUBLISH = Phase("publish")

STREAMED = (EMBED, DENSE, COMPENSATE, STATISTICS, PRUNE, SPARSE, WRITE)  # the loop; planned
ALL = (TOKENIZE, *STREAMED, EXPORT, CHECK, PUBLISH)
WIDEST = max(len(phase.name) for phase in ALL)


class Watcher(NamedTuple):
    """Progress callbacks of a run."""

    tick: Progress = lambda block, phase, done, total, loss: None
    expect: Callable[[Shares], None] = lambda shares: None  # called before the first block
