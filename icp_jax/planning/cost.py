"""FLOPs and bytes moved of a run by phase, and each phase's share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from icp_jax.config import MemoryConfig, RunConfig
from icp_jax.core.distill_steps import held_out
from icp_jax.core.pruners import METHODS, Method, with_solver
from icp_jax.models.spec import Family
from icp_jax.phases import GLOBAL, STREAMED, Epochs
from icp_jax.planning.products import Shapes, products
from icp_jax.planning.table import TABLE
from icp_jax.planning.workload import Workload, size


class Load(NamedTuple):
    """What the FLOPs of a run depend on, beside the model."""

    tokens: int  # positions of all samples
    positions: int  # of one sample
    method: Method
    epochs: Epochs


def load(config: RunConfig, positions: int) -> Load:
    """The load of a resolved config. positions: per sample."""
    method = with_solver(config.prune.method, config.prune.solver)
    return Load(config.calibration.count * positions, positions, method, epochs(config))


def epochs(config: RunConfig) -> Epochs:
    """Epochs of a resolved config."""
    method = METHODS[config.prune.method]
    again = (config.retune.epochs or 0) * method.retunes
    steps = (config.retune.steps or 1) if again else 1
    return Epochs(
        (config.compensate.epochs or 0) * method.compensates,
        again * steps,
        config.global_pass.epochs,
        steps,
    )


def flops(family: Family, shapes: Sequence[Shapes], load: Load) -> dict[str, float]:
    """FLOPs of the matrix products of the whole run, by phase."""
    found = dict.fromkeys((phase.name for phase in STREAMED), 0.0)
    for _, name, count in _terms(family, shapes, load):
        found[name] += count
    return found


def weights(family: Family, shapes: Sequence[Shapes], load: Load) -> dict[tuple[int, str], float]:
    """(block, phase) -> its fraction of the run's FLOPs, in the order of the run.

    The fractions sum to 1. Phases without FLOPs are left out.
    """
    found: dict[tuple[int, str], float] = {}
    for t, name, count in _terms(family, shapes, load):
        found[t, name] = found.get((t, name), 0.0) + count
    # all blocks together, after the last
    last = len(shapes) - 1, GLOBAL.name
    together = [found.pop(key) for key in list(found) if key[1] == GLOBAL.name]
    if together:
        found[last] = sum(together)
    whole = sum(found.values())
    return {key: count / whole for key, count in found.items()}


def _terms(
    family: Family, shapes: Sequence[Shapes], load: Load
) -> Iterator[tuple[int, str, float]]:
    """(block, phase, FLOPs) terms; a phase may have several."""
    for t, block in enumerate(shapes):
        keys = family.keys_met(t, load.positions)
        of_block = products(family, block, keys, load.tokens, load.epochs, load.method)
        for entry in TABLE:
            if entry.phase.of_block(t, of_block.epochs):
                yield from ((t, entry.phase.name, count) for count in entry.flops(of_block))


def moved(work: Workload, memory: MemoryConfig) -> dict[str, int]:
    """Bytes moved between host and device in the whole run, by phase.

    memory: `streams` must be a place, not auto.
    """
    # streams kept on the device are not moved
    stream = 0 if memory.streams == "device" else work.both(memory.stream_dtype) // 2
    found = {}
    for entry in TABLE:
        stored = size(work.embed if entry.phase.first is None else work.blocks)
        times = entry.phase.times(len(work.blocks), epochs(work.config))
        found[entry.phase.name] = entry.streams * times * stream + entry.params * stored
    found[GLOBAL.name] = _moved_by_steps(work, memory) if epochs(work.config).global_pass else 0
    return found


def _moved_by_steps(work: Workload, memory: MemoryConfig) -> int:
    """Bytes that the steps of the global pass move: the params forward; back, both ways, with
    Adam's moments; the output layer; and hidden states that are not on the device."""
    given, windows = work.config.global_pass, work.config.calibration.count
    tuned, batch = windows - held_out(windows), given.batch or 1
    numbers = sum(leaf.size for leaf in jax.tree.leaves(work.blocks))
    # first and last hidden states, and the input of every block twice
    hidden = 0 if memory.streams == "device" else batch * size(work.hidden())
    a_step = 28 * numbers + size(work.head) + (2 + 2 * len(work.blocks)) * hidden
    return given.epochs * (tuned // min(batch, tuned)) * a_step if tuned else 0
