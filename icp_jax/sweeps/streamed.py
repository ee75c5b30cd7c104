"""Run points one by one through the streaming loop, for a model of any size.

The points share the open model, its checks and digests, the calibration tokens, the compiled
programs and, where it is the same, the dense stream. The result of a point is that of
`prune_folder`, bit for bit.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from icp_jax.core.outcomes import BlockReport
from icp_jax.core.passes import Params
from icp_jax.errors import InputError, Kept
from icp_jax.models.spec import Family
from icp_jax.streaming import mesh, storage
from icp_jax.streaming.job import Hooks
from icp_jax.streaming.loop import prune_blocks
from icp_jax.streaming.source import FolderSource
from icp_jax.streaming.targets import Targets
from icp_jax.sweeps.outcome import Blocks, Outcome, Stopped
from icp_jax.sweeps.shared import Prepared, Shared

Dense = tuple[object, ...]  # all that a dense stream depends on, beside the model


class Streamed:
    """The engine. Its files have no names, so the system deletes them when the process ends.

    scratch: their folder. goes_on: other points follow those of one `run`, as in a search.
    """

    name = "streamed"

    def __init__(self, shared: Shared, scratch: Path, goes_on: bool = False):
        self.shared, self.scratch, self.goes_on = shared, scratch, goes_on
        self._targets: dict[Dense, Targets] = {}  # of one dense stream, to bound the disk

    def run(
        self, points: Sequence[Prepared], watched: Blocks = lambda report: None
    ) -> Iterator[Outcome]:
        """The outcome of each point, as soon as it is known; those of one dense stream together."""
        found = [_dense(prepared) for prepared in points]
        points = sorted(points, key=lambda prepared: found.index(_dense(prepared)))
        for now, after in zip_longest(points, points[1:]):
            again = self.goes_on if after is None else _dense(after) == _dense(now)
            with tempfile.TemporaryFile(dir=self.scratch) as file:
                yield self._one(now, file, watched, self._targets_of(_dense(now), again))

    def _one(
        self, prepared: Prepared, file: IO[bytes], watched: Blocks, targets: Targets | None
    ) -> Outcome:
        started, shared, reports = time.perf_counter(), self.shared, list[BlockReport]()
        kept = PrunedModel(shared.source, file)

        def seal(report: BlockReport) -> None:
            reports.append(report)
            watched(report)

        hooks = Hooks(shared.tick, seal, scratch=self.scratch, targets=targets)
        try:
            devices = mesh.choose(prepared.config.devices)
            prune_blocks(shared.source, kept, prepared.tokens, prepared.job, hooks, devices)
        except Kept:
            raise
        except (InputError, Stopped) as error:
            seconds = time.perf_counter() - started
            state = "stopped" if isinstance(error, Stopped) else "failed"
            return Outcome(prepared, seconds, reports, state=state, why=str(error))
        return Outcome(prepared, time.perf_counter() - started, reports, kept)

    def _targets_of(self, dense: Dense, again: bool) -> Targets | None:
        """The targets of this dense stream; None if no other point shares it.

        again: whether a later point does, so that they are kept.
        """
        found = self._targets.pop(dense, None)
        self._targets.clear()
        if again:
            found = found or Targets(self.scratch, self.shared.source.family.n_blocks)
            self._targets[dense] = found
        return found


def _dense(prepared: Prepared) -> Dense:
    """Points with equal ones have the same dense stream, bit for bit."""
    config, made = prepared.config, prepared.job
    dtypes = made.recipe.dtype, made.recipe.stream_dtype
    return (config.calibration, *dtypes, made.batch_tokens, config.devices)


class PrunedModel:
    """A sink for pruned blocks and a source of the pruned model.

    Blocks stay in memory if all of them take less than half of what is free, else in the file.
    """

    def __init__(self, source: FolderSource, file: IO[bytes]):
        self.source, self.file = source, file
        self.blocks: dict[int, Any] = {}
        size = sum(path.stat().st_size for path in source.weights().values())
        self.on_disk = size > storage.host_free() // 2

    @property
    def family(self) -> Family:
        return self.source.family

    def embed(self) -> Params:
        return self.source.embed()

    def head(self) -> Params:
        return self.source.head()

    def write(self, t: int, params: Params, grids: Mapping[str, Any]) -> None:
        """Keep a pruned block."""
        if self.on_disk:
            params = jax.tree.map(partial(_Leaf, self.file), params)
        self.blocks[t] = params

    def block(self, t: int) -> Params:
        """A pruned block, as NumPy arrays."""
        return jax.tree.map(lambda x: x.read() if isinstance(x, _Leaf) else x, self.blocks[t])

    def forget(self) -> None:
        self.source.forget()


class _Leaf:
    """An array at the end of a file, of any dtype."""

    def __init__(self, file: IO[bytes], array: np.ndarray):
        self.file, self.shape, self.dtype = file, array.shape, array.dtype
        self.at = file.seek(0, os.SEEK_END)
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def read(self) -> np.ndarray:
        self.file.seek(self.at)
        return np.fromfile(self.file, self.dtype, math.prod(self.shape)).reshape(self.shape)
