"""Prepare a run: resolve its settings, load its data, and fingerprint its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from icp_jax import backend
from icp_jax.checks import flat, put
from icp_jax.config import MemoryConfig, RunConfig
from icp_jax.core.passes import Shapes
from icp_jax.data import inputs, own
from icp_jax.errors import InputError, Kept
from icp_jax.models.spec import Family
from icp_jax.phases import Progress
from icp_jax.planning import cost, known
from icp_jax.planning.memory import Need
from icp_jax.planning.plan import check_room, settle
from icp_jax.planning.workload import resolved
from icp_jax.runs import global_pass
from icp_jax.runs.fingerprint import Weights, common, fingerprint
from icp_jax.runs.job import job, placed
from icp_jax.streaming.job import Job
from icp_jax.streaming.mesh import Devices
from icp_jax.streaming.source import FolderSource

Begun = Callable[[MemoryConfig], MemoryConfig]


class Ready(NamedTuple):
    """A prepared run."""

    config: RunConfig  # with all settings
    job: Job
    tokens: np.ndarray  # or pixels
    weights: Weights
    shares: dict[tuple[int, str], float]  # (block, phase) -> fraction of the run's FLOPs
    fingerprint: dict[str, Any]  # everything that the result depends on
    facts: dict[str, Any]  # resolved settings and inputs, for the result file


def ready(
    config: RunConfig,
    source: FolderSource,
    devices: Devices,
    progress: Progress = lambda *event: None,
    begun: Begun = lambda memory: memory,
) -> Ready:
    """Prepare the run of a validated config. Every process of the run calls this.

    begun: fills in the memory settings that an interrupted run started with. Raises InputError for
    settings that do not suit the model or the memory, and Kept if the hosts' inputs differ.
    """
    full = resolved(config, source)
    made = job(source, config)
    if config.quant.packed and source.family.kind == "vision":
        raise InputError("quant.packed is for language models: leave it out")
    if own.asked(full.calibration):
        check_room(source, full.calibration, full.memory)
    tokens = inputs.calibration(config.calibration, source, progress)
    if full.global_pass.epochs:
        global_pass.check(source, tokens)
    asked = put(full, "calibration.samples", len(tokens))
    start = dataclasses.replace(asked, memory=begun(asked.memory))
    hashed = _hashing(source)
    try:
        settled, planned = settle(source, start)
    except InputError as error:
        if start == asked:
            raise
        kept = "a resumed run keeps the batch size and remat setting it started with"
        raise Kept(f"{error}; {kept}") from None
    weights = hashed()
    devices.check_same("settings, weights or versions", common(flat(asked), weights))
    samples = inputs.record(source, tokens)
    files = {name: digest for name, digest in weights.digests.items() if name != "config.json"}
    shapes = [source.shapes(t) for t in range(source.family.n_blocks)]
    positions = source.family.positions(settled.calibration.seq_len)
    return Ready(
        settled,
        placed(made, settled.memory),
        tokens,
        weights,
        cost.weights(source.family, shapes, cost.load(settled, positions)),
        fingerprint(flat(settled), weights, samples),
        {
            "config": dataclasses.asdict(settled),
            "inputs": {"weights": files, **samples},
            "plan": _need(planned),
            "warnings": _warnings(source.family, made, shapes),
        },
    )


def _warnings(family: Family, made: Job, shapes: Sequence[Shapes]) -> list[str]:
    """What is known to go wrong with such a run, a line each."""
    size = sum(i * o for block in shapes for i, o in block.values())
    sparsity = round(float(np.maximum(made.hyper.counts, 0).sum()) / size, 3)
    line = known.warning(family, made.recipe.method, sparsity)
    return [] if line is None else [line]


def _need(planned: Need | None) -> dict[str, Any] | None:
    """The planned memory in bytes, for the result file; None for a run that was not planned."""
    if planned is None:
        return None
    phases = [phase._asdict() for phase in planned.phases]
    return {"device": planned.device, "host": planned.host, "phases": phases}


def _hashing(source: FolderSource) -> Callable[[], Weights]:
    """Gives the watched weights; for an accelerator they are hashed while the plan compiles.

    On the CPU they are hashed when asked for: the plan needs the cores, and measures the memory.
    """
    if backend.is_host():
        return partial(Weights, source)
    pool = ThreadPoolExecutor(1)
    coming = pool.submit(Weights, source)
    pool.shutdown(wait=False)
    return coming.result
