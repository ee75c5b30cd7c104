"""Run points one by one through the streaming loop, for a model of any size.

The points share the open model, its checks and digests, the calibration tokens, the compiled
programs and, where it is the same, the dense stream. The result of a point is that of
`prune_folder`, bit for bit.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from icp_jax.core.outcomes import BlockReport
from icp_jax.core.passes import Params
from icp_jax.errors import InputError, Kept
from icp_jax.models.spec import Family
from icp_jax.streaming import mesh, storage
from icp_jax.streaming.loop import Hooks, prune_blocks
from icp_jax.streaming.source import FolderSource
from icp_jax.streaming.targets import Targets
from icp_jax.sweeps.outcome import Blocks, Outcome, Stopped
from icp_jax.sweeps.shared import Prepared, Shared


class Streamed:
    """The engine. scratch: a folder for what does not fit in the host's memory."""

    name = "streamed"

    def __init__(self, shared: Shared, scratch: Path):
        self.shared, self.scratch = shared, scratch
        self._targets: dict[tuple[object, ...], Targets] = {}

    def run(
        self, points: Sequence[Prepared], watched: Blocks = lambda report: None
    ) -> Iterator[Outcome]:
        """The outcome of each point, as soon as it is known."""
        for prepared in points:
            with tempfile.TemporaryDirectory(prefix=".point-", dir=self.scratch) as folder:
                yield self._one(prepared, Path(folder), watched)

    def _one(self, prepared: Prepared, folder: Path, watched: Blocks) -> Outcome:
        started, shared, reports = time.perf_counter(), self.shared, list[BlockReport]()
        kept = PrunedModel(shared.source, folder)

        def seal(report: BlockReport) -> None:
            reports.append(report)
            watched(report)

        hooks = Hooks(shared.tick, seal, scratch=folder, targets=self._targets_of(prepared))
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

    def _targets_of(self, prepared: Prepared) -> Targets:
        """The targets of all points whose dense stream is this one's."""
        config, recipe = prepared.config, prepared.job.recipe
        same = (config.calibration, recipe.dtype, recipe.stream_dtype)
        key = (*same, prepared.job.batch_tokens, config.devices)
        if key not in self._targets:
            self._targets[key] = Targets(self.scratch, self.shared.source.family.n_blocks)
        return self._targets[key]


class PrunedModel:
    """A sink for pruned blocks and a source of the pruned model.

    Blocks stay in memory if all of them take less than half of what is free, else on disk.
    """

    def __init__(self, source: FolderSource, folder: Path):
        self.source, self.folder = source, folder
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
            below = self.folder / str(t)
            below.mkdir()
            leaves, tree = jax.tree.flatten(params)
            params = jax.tree.unflatten(
                tree, [_Leaf(below / str(k), x) for k, x in enumerate(leaves)]
            )
        self.blocks[t] = params

    def block(self, t: int) -> Params:
        """A pruned block, as NumPy arrays."""
        return jax.tree.map(lambda x: x.read() if isinstance(x, _Leaf) else x, self.blocks[t])

    def forget(self) -> None:
        self.source.forget()


class _Leaf:
    """An array on disk, of any dtype."""

    def __init__(self, path: Path, array: np.ndarray):
        self.path, self.shape, self.dtype = path, array.shape, array.dtype
        np.ascontiguousarray(array).tofile(path)

    def read(self) -> np.ndarray:
        return np.fromfile(self.path, self.dtype).reshape(self.shape)
