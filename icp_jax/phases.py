"""The phases of a run: their names, their order, and which blocks and methods have them.

The loop, the plan and the progress bar read them here. Their costs are in
`icp_jax.planning.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

# (block, or -1 outside blocks; phase; done; total; loss)
Progress = Callable[[int, str, int, int, float | None], None]
Shares = Mapping[tuple[int, str], float]  # (block, phase) -> its share of the run


class Phase(NamedTuple):
    """One phase. name: as shown by the progress bar, the plan and the records."""

    name: str
    first: int | None = None  # the first block that has it; None: once per run
    tunes: bool = False  # runs once per epoch, for methods that compensate
    exact: bool = False  # computes in float32, whatever the dtype of the blocks

    def of_block(self, t: int, epochs: int) -> bool:
        """Whether block t has this phase. epochs: of compensation; 0 without compensation."""
        return self.first is not None and t >= self.first and (not self.tunes or epochs > 0)

    def times(self, blocks: int, epochs: int) -> int:
        """How often the phase runs, every epoch counted, for this number of blocks."""
        if self.first is None:
            return 1
        return max(blocks - self.first, 0) * (epochs if self.tunes else 1)


TOKENIZE = Phase("tokenize")
GENERATE = Phase("generate")
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

STREAMED = (EMBED, DENSE, COMPENSATE, STATISTICS, PRUNE, SPARSE, WRITE)  # in the loop and the plan
ALL = (TOKENIZE, GENERATE, *STREAMED, EXPORT, CHECK, PUBLISH)
WIDEST = max(len(phase.name) for phase in ALL)


class Watcher(NamedTuple):
    """Callbacks for the progress of a run."""

    tick: Progress = lambda block, phase, done, total, loss: None
    expect: Callable[[Shares], None] = lambda shares: None  # called before the first block
