"""A run on several hosts, as all processes but the first execute it: they write no files."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

from icp_jax.config import RunConfig, check
from icp_jax.core.passes import Params
from icp_jax.data.hub import resolve
from icp_jax.runs.door import ready
from icp_jax.runs.records import read_block
from icp_jax.streaming import mesh
from icp_jax.streaming.job import Finished, Hooks
from icp_jax.streaming.loop import prune_blocks
from icp_jax.streaming.source import FolderSource


def follow(config: RunConfig) -> None:
    """Take part in the `prune_folder` of process 0."""
    config = check(config)
    devices = mesh.choose(config.devices)
    with closing(FolderSource(resolve(config.model))) as source:
        run = ready(config, source, devices)
        reports = [read_block(record) for record in devices.tell([])]
        # only process 0 has the finished blocks; here, the source's have the same shapes
        finished = [Finished(report, partial(source.block, report.block)) for report in reports]
        prune_blocks(source, Nowhere(), run.tokens, run.job, Hooks(finished=finished), devices)


class Nowhere:
    """A sink that drops all blocks."""

    def write(self, t: int, params: Params, grids: Any) -> None: ...
