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


class Epochs(NamedTuple):
    """Passes over the samples that tune a block; 0 where the method does not."""

    compensate: int = 0
    retune: int = 0
    global_pass: int = 0  # of all blocks together, after the last one
    steps: int = 1  # in which a block is pruned; the epochs of the re-tune are those of all


class Phase(NamedTuple):
    """One phase. name: as shown by the progress bar, the plan and the records."""

    name: str
    first: int | None = None  # the first block that has it; None: once per run
    tunes: str = ""  # runs once per epoch of this kind, a field of Epochs
    exact: bool = False  # computes in float32, whatever the dtype of the blocks
    stepped: bool = False  # runs once for each step of the pruning

    def of_block(self, t: int, epochs: Epochs) -> bool:
        """Whether block t has this phase."""
        return self.first is not None and t >= self.first and self._each(epochs) > 0

    def times(self, blocks: int, epochs: Epochs) -> int:
        """How often the phase runs, every epoch counted, for this number of blocks."""
        if self.first is None:
            return 1
        return max(blocks - self.first, 0) * self._each(epochs)

    def _each(self, epochs: Epochs) -> int:
        if self.stepped:
            return epochs.steps
        return getattr(epochs, self.tunes) if self.tunes else 1


TOKENIZE = Phase("tokenize")
GENERATE = Phase("generate")
EMBED = Phase("embed")
DENSE = Phase("dense", first=0)
COMPENSATE = Phase("compensate", first=1, tunes="compensate")
STATISTICS = Phase("statistics", first=0, exact=True, stepped=True)
PRUNE = Phase("prune", first=0, exact=True, stepped=True)
RETUNE = Phase("retune", first=0, tunes="retune")
SPARSE = Phase("sparse", first=0)
WRITE = Phase("write", first=0)
GLOBAL = Phase("global", first=0, tunes="global_pass")
EXPORT = Phase("export")
CHECK = Phase("check")
PUBLISH = Phase("publish")

# in the loop and the plan
STREAMED = (EMBED, DENSE, COMPENSATE, STATISTICS, PRUNE, RETUNE, SPARSE, WRITE, GLOBAL)
ALL = (TOKENIZE, GENERATE, *STREAMED, EXPORT, CHECK, PUBLISH)
WIDEST = max(len(phase.name) for phase in ALL)


class Watcher(NamedTuple):
    """Callbacks for the progress of a run."""

    tick: Progress = lambda block, phase, done, total, loss: None
    expect: Callable[[Shares], None] = lambda shares: None  # called before the first block
