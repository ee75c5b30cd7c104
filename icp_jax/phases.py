"""The phases of a run: their names, their order, and which blocks and methods have them.

The loop, the plan and the progress read them here. What a phase costs is one entry of
`icp_jax.planning.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

# (block, or -1 for what has none; phase; done; total; loss)
Progress = Callable[[int, str, int, int, float | None], None]
Shares = Mapping[tuple[int, str], float]  # (block, phase) -> its share of the run


class Phase(NamedTuple):
    """One phase, by the name that the progress, the plan and the records give it."""

    name: str
    first: int | None = None  # the first block that has it; None: it comes once a run
    tunes: bool = False  # it comes once an epoch, of methods that compensate
    exact: bool = False  # it computes in float32, whatever the blocks compute in

    def of_block(self, t: int, epochs: int) -> bool:
        """Whether block t has it. epochs: of compensation, 0 where the method has none."""
        return self.first is not None and t >= self.first and (not self.tunes or epochs > 0)

    def times(self, blocks: int, epochs: int) -> int:
        """How often it comes in a run of so many blocks; every epoch counts."""
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

STREAMED = (EMBED, DENSE, COMPENSATE, STATISTICS, PRUNE, SPARSE, WRITE)  # the loop's; planned
ALL = (TOKENIZE, *STREAMED, EXPORT, CHECK, PUBLISH)
WIDEST = max(len(phase.name) for phase in ALL)


class Watcher(NamedTuple):
    """Who is told how a run gets on."""

    tick: Progress = lambda block, phase, done, total, loss: None
    expect: Callable[[Shares], None] = lambda shares: None  # before the first block
