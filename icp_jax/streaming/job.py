"""What the streaming loop is given: a model, a place for the result, settings and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from icp_jax.core import quantize
from icp_jax.core.hyper import Hyper, Recipe
from icp_jax.core.outcomes import BlockReport
from icp_jax.core.passes import Params, Shapes
from icp_jax.core.pruners import METHODS
from icp_jax.models.spec import Family
from icp_jax.phases import Epochs, Progress
from icp_jax.streaming.targets import Targets


class Source(Protocol):
    """A source of blocks. Leaves are NumPy arrays in their stored dtype."""

    @property
    def family(self) -> Family: ...
    def shapes(self, t: int) -> Shapes: ...
    def embed(self) -> Params: ...
    def block(self, t: int) -> Params: ...
    def forget(self) -> None: ...  # frees the memory of earlier blocks, which stay readable


class Sink(Protocol):
    """A sink for pruned blocks. Leaves have the source's dtype. grids: by linear."""

    def write(self, t: int, params: Params, grids: Mapping[str, quantize.Grid]) -> None: ...


@dataclass(frozen=True)
class Job:
    """The settings of a run, fixed before the first block."""

    hyper: Hyper  # one point, as NumPy arrays
    recipe: Recipe  # its `batch` is unused, see batch_tokens
    seed: int = 0  # of the sample order in compensation
    place: str = "auto"  # of the streams: device, host or disk; auto: the first with room
    batch_tokens: int | None = None  # positions per batch and device; None: the backend's default

    @property
    def epochs(self) -> Epochs:
        """How often a block is tuned."""
        method = METHODS[self.recipe.method]
        compensate = len(self.hyper.rates) * method.compensates
        again = self.hyper.retune
        return Epochs(compensate, again.size * method.retunes, steps=len(again))


@dataclass(frozen=True)
class Finished:
    """A block pruned by an earlier run. Its params are read when the streams reach it."""

    report: BlockReport
    read: Callable[[], Params]


@dataclass(frozen=True)
class Hooks:
    """Callbacks of a driver, and the blocks that it has already."""

    progress: Progress = lambda block, phase, done, total, loss: None
    seal: Callable[[BlockReport], None] = lambda report: None  # called after the sink's write
    finished: Sequence[Finished] = ()  # the first blocks, if an earlier run pruned them
    scratch: Path | None = None  # the folder for streams on disk
    targets: Targets | None = None  # shared with runs that have the same dense stream
