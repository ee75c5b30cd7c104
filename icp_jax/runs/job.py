"""From the settings of a run to the job of the streaming loop: here the settings end."""

from __future__ import annotations

from typing import Any

from icp_jax.checks import flat
from icp_jax.config import RunConfig, filled
from icp_jax.core.hyper import Recipe, hyper
from icp_jax.core.masks import parse_pattern
from icp_jax.planning.budgets import used
from icp_jax.streaming.loop import Job, Source
from icp_jax.streaming.passes import compute_dtype


def job(source: Source, config: RunConfig) -> Job:
    """What the settings ask for. Raises InputError for counts that cannot be met."""
    used(source.family, config.prune)
    run, shapes = filled(config), [source.shapes(t) for t in range(source.family.n_blocks)]
    prune, quant, memory = run.prune, run.quant, run.memory
    settings: dict[str, Any] = flat(run)
    recipe = Recipe(
        method=prune.method,
        pattern=parse_pattern(prune.pattern),
        block_size=settings["prune.block_size"],
        dtype=compute_dtype(run.dtype),
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
        sparsity=prune.sparsity,
        alpha=prune.alpha,
        beta=prune.beta,
        rearrange=prune.rearrange,
        lr=settings["compensate.lr"],
        gamma=settings["compensate.gamma"],
        epochs=settings["compensate.epochs"],
        damping=settings["prune.damping"],
        bits=quant.bits or 0,
    )
    return Job(point, recipe, settings["seed"], memory.streams, memory.batch_tokens)
