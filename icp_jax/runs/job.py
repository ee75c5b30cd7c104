"""Turn the settings of a run into the job of the streaming loop."""

from __future__ import annotations

import dataclasses
from typing import Any

from icp_jax.checks import flat
from icp_jax.config import MemoryConfig, RunConfig, filled
from icp_jax.core.counts import counts
from icp_jax.core.hyper import Recipe, as_table, point, schedule, stepwise
from icp_jax.core.pruners import METHODS
from icp_jax.planning.budgets import target
from icp_jax.streaming.job import Job, Source
from icp_jax.streaming.passes import compute_dtype


def job(source: Source, config: RunConfig) -> Job:
    """The job of a run. Raises InputError for an infeasible sparsity allocation."""
    family = source.family
    run = filled(config)
    quant = run.quant
    settings: dict[str, Any] = flat(run)  # of type Any: filled-in settings are not None
    aim = target(family, run.prune)
    shapes = [source.shapes(t) for t in range(family.n_blocks)]
    zeros = counts(family, shapes, aim, method=run.prune.method, group=quant.group)
    recipe = Recipe(
        method=run.prune.method,
        solver=settings["prune.solver"],
        pattern=aim.pattern,
        block_size=settings["prune.block_size"],
        dtype=compute_dtype(run.dtype),
        stream_dtype=run.memory.stream_dtype,
        quantize=quant.bits is not None,
        group=quant.group,
        symmetric=quant.symmetric,
        search=quant.search,
    )
    rates, again = (
        schedule(*(settings[f"{kind}.{name}"] for name in ("lr", "gamma", "epochs")))
        for kind in ("compensate", "retune")
    )
    again = again if METHODS[recipe.method].retunes else again[:0]
    table, damping = as_table(family, zeros), settings["prune.damping"]
    again = stepwise(again, settings["retune.steps"])
    numbers = point(table, rates, damping, quant.bits or 0, again)
    return placed(Job(numbers, recipe, settings["seed"]), run.memory)


def placed(made: Job, memory: MemoryConfig) -> Job:
    """Apply the memory settings to a job: place of the streams, batch size and remat."""
    recipe = dataclasses.replace(made.recipe, remat=bool(memory.remat))
    return dataclasses.replace(
        made, recipe=recipe, place=memory.streams, batch_tokens=memory.batch_tokens
    )
