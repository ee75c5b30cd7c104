"""Finish a run: export its blocks and make its record."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from icp_jax.core.choice import LEFT
from icp_jax.core.outcomes import BlockReport, remedies
from icp_jax.phases import EXPORT, Progress
from icp_jax.runs.export import FolderSink
from icp_jax.runs.global_pass import held
from icp_jax.runs.packed import PackedSink
from icp_jax.runs.records import block_record, peaks, versions
from icp_jax.runs.resume import Work
from icp_jax.runs.verify_export import Counted
from icp_jax.streaming.distill import Reached
from icp_jax.streaming.job import Job
from icp_jax.streaming.source import FolderSource


def export(
    work: Work,
    source: FolderSource,
    job: Job,
    packed: bool,
    progress: Progress,
    passed: Reached | None = None,
) -> None:
    """Export the finished blocks, as packed integers or in the source's dtypes.

    passed: the global pass over them, whose best epoch is exported.
    """
    last = source.family.n_blocks - 1
    work.export.mkdir()
    sink: FolderSink | PackedSink
    if packed:
        bits, recipe = int(job.hyper.bits), job.recipe
        chosen = np.asarray(job.hyper.counts) != LEFT
        sink = PackedSink(source, work.export, bits, recipe.group, recipe.symmetric, chosen)
    else:
        sink = FolderSink(source, work.export)
    try:
        with ThreadPoolExecutor(1) as ahead:  # reads the next block while one is written
            coming = ahead.submit(work.proven, 0)
            for t in range(last + 1):
                params, grids = coming.result()
                if t < last:
                    coming = ahead.submit(work.proven, t + 1)
                if passed is not None and passed.best is not None:
                    params = held(source.family, params, passed.best[t], t)
                sink.write(t, params, grids)
                progress(last, EXPORT.name, t + 1, last + 1, None)
        sink.close()
    except BaseException:
        sink.abandon()
        raise


def linear_sizes(source: FolderSource, counted: Counted) -> dict[str, int]:
    """The bytes of the linears: in the source's dtypes, and as `icp-jax pack` writes them."""
    plain = sum(size * source.dtype(name).itemsize for name, (_, size) in counted.layers.items())
    return {"bytes": plain, "packed_bytes": counted.packed_bytes}


def record(
    facts: dict[str, Any],
    blocks: Sequence[BlockReport],
    counted: Counted,
    sizes: dict[str, int],
    seconds: float,
) -> dict[str, Any]:
    """The content of the result file. facts: from `ready`. sizes: of the linears. seconds: of the
    whole run."""
    return {
        "config": facts["config"],
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "inputs": facts["inputs"],
        "plan": facts["plan"],
        "warnings": facts["warnings"],
        "sparsity": counted.sparsity,
        "pruned_sparsity": counted.pruned_sparsity,
        "left": sorted(counted.left),
        "zeros": counted.zeros,
        "size": counted.size,
        "linears": sizes,
        "seconds": round(seconds, 3),
        **peaks(),
        "remedies": [line for block in blocks for line in remedies(block)],
        "blocks": [block_record(block) for block in blocks],
    }
