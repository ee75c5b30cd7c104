"""From the settings of a run to the job of the streaming loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from icp_jax.checks import flat
from icp_jax.config import (
    CompensateConfig,
    MemoryConfig,
    PruneConfig,
    QuantConfig,
    RunConfig,
    filled,
)
from icp_jax.core.hyper import Recipe, hyper
from icp_jax.core.masks import parse_pattern
from icp_jax.core.outcomes import BlockReport
from icp_jax.planning.budgets import used
from icp_jax.streaming import loop
from icp_jax.streaming.loop import Finished, Hooks, Job, Progress, Sink, Source
from icp_jax.streaming.mesh import ONE, Devices
from icp_jax.streaming.passes import compute_dtype

__all__ = ["BlockReport", "Finished", "Progress", "Sink", "Source", "prune_blocks"]


def job(
    source: Source,
    config: PruneConfig,
    compensation: CompensateConfig,
    quant: QuantConfig,
    memory: MemoryConfig,
    dtype: str = "auto",
    seed: int | None = None,
) -> Job:
    """What the settings ask for. Raises InputError for budgets that cannot be met."""
    used(source.family, config)
    run = filled(RunConfig(prune=config, compensate=compensation, seed=seed))
    settings: dict[str, Any] = flat(run)
    shapes = [source.shapes(t) for t in range(source.family.n_blocks)]
    recipe = Recipe(
        method=config.method,
        pattern=parse_pattern(config.pattern),
        block_size=settings["prune.block_size"],
        dtype=compute_dtype(dtype),
        stream_dtype=memory.stream_dtype,
        quantize=quant.bits is not None,
        group=quant.group,
        symmetric=quant.symmetric,
        search=quant.search,
        remat=bool(memory.remat),
    )
    point = hyper(
        source.family,
        shapes,
        recipe=recipe,
        sparsity=run.prune.sparsity,
        alpha=config.alpha,
        beta=config.beta,
        rearrange=config.rearrange,
        lr=settings["compensate.lr"],
        gamma=settings["compensate.gamma"],
        epochs=settings["compensate.epochs"],
        damping=settings["prune.damping"],
        bits=quant.bits or 0,
    )
    return Job(point, recipe, settings["seed"], memory.streams, memory.batch_tokens)


def prune_blocks(
    source: Source,
    sink: Sink,
    tokens: np.ndarray,
    config: PruneConfig,
    compensation: CompensateConfig | None = None,
    quant: QuantConfig | None = None,
    *,
    dtype: str = "auto",
    seed: int | None = None,
    memory: MemoryConfig | None = None,
    scratch: Path | None = None,
    progress: Progress = lambda block, phase, done, total, loss: None,
    finished: Sequence[Finished] = (),
    seal: Callable[[BlockReport], None] = lambda report: None,
    devices: Devices = ONE,
) -> list[BlockReport]:
    """`loop.prune_blocks` of a run's settings."""
    settings = (config, compensation or CompensateConfig(), quant or QuantConfig())
    made = job(source, *settings, memory or MemoryConfig(), dtype, seed)
    hooks = Hooks(progress, seal, finished, scratch)
    return loop.prune_blocks(source, sink, tokens, made, hooks, devices)
