"""What a run needs before its first block. Every process of a run comes through here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from icp_jax.checks import flat
from icp_jax.config import RunConfig
from icp_jax.data import inputs
from icp_jax.errors import InputError, Kept
from icp_jax.phases import Progress
from icp_jax.planning import cost
from icp_jax.planning.plan import settle
from icp_jax.planning.workload import resolved
from icp_jax.runs.fingerprint import Weights, common, fingerprint
from icp_jax.runs.job import job, placed
from icp_jax.streaming.loop import Job
from icp_jax.streaming.mesh import Devices
from icp_jax.streaming.source import FolderSource

Begun = Callable[[RunConfig], RunConfig]


class Ready(NamedTuple):
    """A run that can start."""

    job: Job
    tokens: np.ndarray  # or pixels
    weights: Weights
    shares: dict[tuple[int, str], float]  # of the run, by block and phase
    fingerprint: dict[str, Any]  # what the result hangs on
    facts: dict[str, Any]  # what the record says: the settings, resolved, and the inputs


def ready(
    config: RunConfig,
    source: FolderSource,
    devices: Devices,
    progress: Progress = lambda *event: None,
    begun: Begun = lambda config: config,
) -> Ready:
    """The run that checked settings describe. begun: with what an earlier run was begun with.

    Raises InputError for settings that the model or the memory does not allow, Kept where the
    hosts that share the run do not have the same.
    """
    full = resolved(config, source)
    made = job(source, config)
    if config.quant.packed and source.family.kind == "vision":
        raise InputError("quant.packed is for language models: leave it out")
    tokens = inputs.calibration(config.calibration, source, progress)
    asked = inputs.counted(full, tokens)
    settled = _settled(source, asked, begun(asked))
    weights = Weights(source)
    devices.check_same("settings, weights or versions", common(flat(asked), weights))
    samples = inputs.record(source, tokens)
    files = {name: digest for name, digest in weights.digests.items() if name != "config.json"}
    shapes = [source.shapes(t) for t in range(source.family.n_blocks)]
    positions = source.family.positions(settled.calibration.seq_len)
    return Ready(
        placed(made, settled.memory),
        tokens,
        weights,
        cost.weights(source.family, shapes, settled, positions),
        fingerprint(flat(settled), weights, samples),
        {"config": dataclasses.asdict(settled), "inputs": {"weights": files, **samples}},
    )


def _settled(source: FolderSource, asked: RunConfig, begun: RunConfig) -> RunConfig:
    """`settle`, with what a run that is taken up again was begun with. Raises InputError."""
    try:
        return settle(source, begun)
    except InputError as error:
        if begun == asked:
            raise
        kept = "going on keeps the batch and rematerialisation that the run was begun with"
        raise Kept(f"{error}; {kept}") from None
