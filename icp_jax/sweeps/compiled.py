"""Run points as one program of `core.icp`, with the whole model in memory.

Points that share method, pattern, epochs and quantization share the program. On an accelerator as
many run at once as fit, and several devices share them. On the CPU a program takes one point: those
of a small model do not fill the cores, so several run side by side, each on a thread of its own.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from icp_jax import backend
from icp_jax.config import CalibrationConfig
from icp_jax.core import outcomes
from icp_jax.core.hyper import Hyper, Recipe, block_orders
from icp_jax.core.icp import icp
from icp_jax.errors import InputError
from icp_jax.model import Model
from icp_jax.phases import Epochs
from icp_jax.streaming import storage, transfer
from icp_jax.sweeps.outcome import Blocks, Outcome
from icp_jax.sweeps.settings import Sweep
from icp_jax.sweeps.shared import Prepared, Shared

AXIS = "points"
COPIES = 4  # of the weights, in float32: a rough lower bound on what one point needs
PAYS = 8  # points that make up for compiling their program on a CPU
# Settings that are traced: a search over them needs one program.
TRACED: tuple[str, ...] = (
    "prune.sparsity",
    "prune.alpha",
    "prune.beta",
    "prune.rearrange",
    "prune.damping",
)
TRACED += ("prune.include", "prune.exclude", "prune.sparsity_of")
TRACED += ("prune.keep_first", "prune.keep_last")
TRACED += ("compensate.lr", "compensate.gamma", "retune.lr", "retune.gamma", "quant.bits", "seed")


class Kind(NamedTuple):
    """What points must share to share a program."""

    recipe: Recipe
    epochs: Epochs
    calibration: CalibrationConfig


def kind_of(prepared: Prepared) -> Kind:
    made, (samples, positions) = prepared.job, prepared.tokens.shape
    batch = transfer.batch_size(samples, positions, made.batch_tokens)
    recipe = dataclasses.replace(made.recipe, batch=batch)
    return Kind(recipe, made.epochs, prepared.config.calibration)


def may_fit(shared: Shared) -> bool:
    """Whether a first, rough look finds room for one point with the whole model in memory."""
    shapes = [shared.source.shapes(t) for t in range(shared.source.family.n_blocks)]
    weights = sum(i * o for block in shapes for i, o in block.values())
    return COPIES * 4 * weights < storage.device_free()


def pays(points: Sequence[Prepared], sweep: Sweep) -> bool:
    """Whether compiling the programs of these points takes less time than it saves.

    Of a search, whose later points are not known yet: one of them.
    """
    if backend.is_host():
        programs = len({kind_of(prepared) for prepared in points})
        count = sweep.trials or PAYS if sweep.space else len(points)
        if count < PAYS * programs:
            return False
    return all(name in TRACED for name in sweep.space)


class Compiled:
    """The engine."""

    name = "compiled"

    def __init__(self, shared: Shared):
        source, devices = shared.source, jax.local_devices()
        self.shared = shared
        self.mesh = Mesh(np.array(devices), (AXIS,)) if len(devices) > 1 else None
        self.model = Model(source.config, source.tree(), source.reader.layout, source.folder)
        where = None if self.mesh is None else NamedSharding(self.mesh, P())
        self.params = jax.device_put(self.model.params, where)

    def run(
        self, points: Sequence[Prepared], watched: Blocks = lambda report: None
    ) -> Iterator[Outcome]:
        """The outcome of each point, as soon as it is known; points of one program together."""
        kinds: dict[Kind, list[Prepared]] = {}
        for prepared in points:
            kinds.setdefault(kind_of(prepared), []).append(prepared)
        for kind, alike in kinds.items():
            width = self._width(alike)
            chunks = [alike[start : start + width] for start in range(0, len(alike), width)]
            run = partial(self._chunk, kind, width=width)
            self.shared.tick(-1, "prune", 0, 1, None)
            first = run(chunks.pop(0))  # alone: it compiles the program
            for outcome in chain(first, self._side_by_side(run, chunks)):
                self.shared.tick(-1, "prune", 1, 1, None)
                yield outcome

    def _side_by_side(
        self,
        run: Callable[[Sequence[Prepared]], list[Outcome]],
        chunks: Sequence[Sequence[Prepared]],
    ) -> Iterator[Outcome]:
        """The outcomes of the chunks in their order, with as many under way as the host takes."""
        lanes, waiting = self._lanes(chunks), iter(chunks)
        with ThreadPoolExecutor(lanes) as pool:
            under_way = deque(pool.submit(run, chunk) for chunk in islice(waiting, lanes))
            try:
                while under_way:
                    done = under_way.popleft().result()
                    under_way.extend(pool.submit(run, chunk) for chunk in islice(waiting, 1))
                    yield from done
            finally:
                for future in under_way:
                    future.cancel()

    def _lanes(self, chunks: Sequence[Sequence[Prepared]]) -> int:
        """Chunks that run side by side: of a host one a core, if half of its memory holds them."""
        if not backend.is_host() or self.mesh is not None or len(chunks) < 2:
            return 1
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        fit = storage.host_free() // (2 * max(1, self.need(chunks[0][0])))
        return max(1, min(cores or 1, fit))

    def need(self, prepared: Prepared) -> int:
        """Bytes of device memory for one point, as compiled."""
        found = self._alone(prepared).memory_analysis()
        return sum(
            getattr(found, f"{what}_size_in_bytes") for what in ("argument", "temp", "output")
        )

    def _width(self, alike: Sequence[Prepared]) -> int:
        """Points that run at once: one a device on a CPU, else as many as fit."""
        devices = 1 if self.mesh is None else self.mesh.size
        if backend.is_host() or len(alike) == 1:
            return devices if len(alike) > 1 else 1
        found = self._alone(alike[0]).memory_analysis()
        one = found.temp_size_in_bytes + found.output_size_in_bytes
        fit = max(1, storage.device_free() // (2 * one))  # half: vmap's temporaries are not exact
        return devices * min(fit, -(-len(alike) // devices))

    def _chunk(self, kind: Kind, alike: Sequence[Prepared], width: int) -> list[Outcome]:
        started = time.perf_counter()
        family, model = self.model.family, (self.params, alike[0].tokens)
        given = [self._traced(prepared) for prepared in alike]
        if width == 1:
            found = _prune(family, kind.recipe, *model, given[0])
        else:
            given += [given[-1]] * (width - len(given))
            many = jax.tree.map(lambda *x: np.stack(x), *given)
            found = _several(family, kind.recipe, self.mesh, *model, many)
        blocks, metrics = jax.device_get(found)
        seconds = (time.perf_counter() - started) / len(alike)

        def one(k: int, tree: Any) -> Any:
            return tree if width == 1 else jax.tree.map(lambda x: x[k], tree)

        return [
            self._outcome(prepared, seconds, one(k, blocks), one(k, metrics))
            for k, prepared in enumerate(alike)
        ]

    def _outcome(self, prepared: Prepared, seconds: float, blocks: Any, metrics: Any) -> Outcome:
        family, damping = self.model.family, float(prepared.job.hyper.damping)
        params = {**self.model.params, "blocks": blocks}
        try:
            reports = outcomes.reports(family, params, metrics, damping)
        except InputError as error:
            return Outcome(prepared, seconds, [], state="failed", why=str(error))
        return Outcome(prepared, seconds, reports, dataclasses.replace(self.model, params=params))

    def _traced(self, prepared: Prepared) -> tuple[Hyper, np.ndarray]:
        """What the program takes of a point: its numbers, and the order of its samples."""
        made, blocks = prepared.job, self.model.family.n_blocks
        order = block_orders(made.seed, blocks, made.hyper.orders, len(prepared.tokens))
        return made.hyper, order

    def _alone(self, prepared: Prepared) -> Any:
        """The compiled program for one point, which JAX keeps for the next one."""
        family, recipe = self.model.family, kind_of(prepared).recipe
        given = self.params, prepared.tokens, self._traced(prepared)
        return _prune.lower(family, recipe, *given).compile()


@partial(jax.jit, static_argnums=(0, 1))
def _prune(family, recipe, params, tokens, at):
    """(the pruned blocks, metrics) of one point."""
    hyper, order = at
    pruned, metrics = icp(family, params, tokens, hyper, order, recipe)
    return pruned["blocks"], metrics


@partial(jax.jit, static_argnums=(0, 1, 2))
def _several(family, recipe, mesh, params, tokens, many):
    """`_prune` over points on a leading axis, which the devices share."""

    def local(params, tokens, many):
        one = partial(_prune, family, recipe, params, tokens)
        return jax.lax.map(one, many) if backend.is_host() else jax.vmap(one)(many)

    if mesh is None:
        return local(params, tokens, many)
    shares = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(), P(AXIS)), out_specs=P(AXIS), check_vma=False
    )
    return shares(params, tokens, many)
