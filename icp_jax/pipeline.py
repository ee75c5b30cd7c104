"""The loop of ICP, to be read beside the paper.

Two streams of hidden states run through the model: `dense`, the unpruned model's, and `sparse`,
the model's as pruned so far. When block t is pruned, the dense stream goes through block t+1,
which is tuned, still dense, to turn the sparse stream into the dense one; then block t+1 is
pruned on what the sparse stream feeds it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from icp_jax import heap, places, quantize, steps, streams
from icp_jax.behind import Behind
from icp_jax.budgets import Shapes, budgets
from icp_jax.clock import Clock
from icp_jax.compensation import Compensation, compensate
from icp_jax.config import CompensateConfig, MemoryConfig, PruneConfig, QuantConfig
from icp_jax.errors import InputError
from icp_jax.mesh import ONE, Devices
from icp_jax.models.spec import Family
from icp_jax.prune_block import LayerReport, prune_block
from icp_jax.pruners import METHODS
from icp_jax.remedies import check_share
from icp_jax.steps import Params

Progress = Callable[[int, str, int, int, float | None], None]


class Source(Protocol):
    """Where blocks come from: leaves are NumPy arrays in the dtype they are stored in."""

    @property
    def family(self) -> Family: ...
    def shapes(self, t: int) -> Shapes: ...
    def embed(self) -> Params: ...
    def block(self, t: int) -> Params: ...
    def forget(self) -> None: ...  # the blocks given out are on the device; they stay readable


class Sink(Protocol):
    """Where pruned blocks go. Leaves come in the dtype the source has them in; grids: by linear."""

    def write(self, t: int, params: Params, grids: Mapping[str, quantize.Grid]) -> None: ...


@dataclass(frozen=True)
class BlockReport:
    """One block. error: ‖sparse-dense‖²/‖dense‖² of the streams after it."""

    block: int
    layers: tuple[LayerReport, ...]
    error: float
    compensation: Compensation | None  # of this block, before it was pruned
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A block that an earlier run has pruned; its params are read when the streams reach it."""

    report: BlockReport
    read: Callable[[], Params]


def prune_blocks(
    source: Source,
    sink: Sink,
    tokens: np.ndarray,
    config: PruneConfig,
    compensation: CompensateConfig | None = None,
    quant: QuantConfig | None = None,
    *,
    dtype: str = "auto",
    seed: int = 0,
    memory: MemoryConfig | None = None,
    scratch: Path | None = None,
    progress: Progress = lambda block, phase, done, total, loss: None,
    finished: Sequence[Finished] = (),
    seal: Callable[[BlockReport], None] = lambda report: None,
    devices: Devices = ONE,
) -> list[BlockReport]:
    """Prune every block of a model on calibration tokens `[N, T]` (or images, for a vision
    family); blocks go to the sink.

    memory: where the streams live and in what precision; scratch: the folder for those on disk.
    finished: the first blocks, where an earlier run has pruned them: only the streams go through
    them again, and the rest comes out as if that run had never stopped. seal: called with the
    report of every other block, after the sink has it. devices: what share the work; with those of
    other processes, all of them call this, alike, and every sink is given every block.
    Raises InputError for budgets that cannot be met, naming the block, for a block whose output
    is not finite, and, with the list, where more than a tenth needed a remedy (`remedies`).
    """
    compensation = compensation or CompensateConfig()
    family, method = source.family, METHODS[config.method]
    n_blocks = family.n_blocks
    reports = [block.report for block in finished]
    if len(finished) == n_blocks:
        return reports
    budget = budgets(family, [source.shapes(t) for t in range(n_blocks)], config, quant)
    applies = [steps.Apply(family.block_at(t), steps.compute_dtype(dtype)) for t in range(n_blocks)]
    embed = source.embed()
    memory = memory or MemoryConfig()
    tuned_as = [apply.rematerialised() if memory.remat else apply for apply in applies]
    one = steps.hidden(family, embed, tokens[:1], memory.stream_dtype)
    shape = (len(tokens), *one.shape[1:])
    both = 2 * int(np.prod(shape)) * np.dtype(memory.stream_dtype).itemsize
    half = places.host_free() // 2
    place = places.choose(memory.streams, both, places.device_free() // 2, half)
    positions = int(np.prod(shape[1:-1]))
    size = streams.batch_size(len(tokens), positions, memory.batch_tokens, devices.count)
    size = devices.tell(size)
    devices.check_same("calibration samples", tokens)
    clock, compiled = Clock(), set[str]()

    def ticker(block, phase):
        def tick(done, total, loss=None):
            if phase not in compiled:
                heap.give_back()  # what compiling took
                compiled.add(phase)
            progress(block, phase, done, total, loss)

        return tick

    def finite(block, energies):
        if not np.all(np.isfinite(energies)):
            raise InputError(f"block {block} gives values that are not finite (NaN or infinity)")

    def to_device(stored, devices=devices):
        params = streams.settle(steps.to_device(stored, devices))
        source.forget()
        return params

    def advance_dense(t, params):
        step = partial(steps.forward, applies[t], params)
        before = dense if t else sparse
        finite(t, streams.advance(step, [before], dense, size, ticker(t, "dense"), devices))

    def advance_sparse(t, params):
        step = partial(steps.forward_beside, applies[t], params)
        tick = ticker(t, "sparse")
        energies = streams.advance(step, [sparse, dense], sparse, size, tick, devices)
        finite(t, energies)
        return energies

    def statistics(t, params):
        tick = ticker(t, "statistics")
        seen = steps.no_statistics(family, source.shapes(t), len(tokens) * positions)
        seen = devices.whole(seen)
        for where, (x,), valid in streams.batches([sparse], size, devices=devices):
            seen = streams.settle(steps.collect(applies[t], params, x, seen, valid))
            tick(where.stop, len(sparse))
        return jax.block_until_ready(seen)

    # jaxlib holds arrays it was given, as an earlier run's stream, until any collection
    gc.collect(0)
    sparse, dense = (places.empty(shape, memory.stream_dtype, place, scratch) for _ in range(2))
    start = steps.embed_tokens(family, embed, memory.stream_dtype, devices)
    streams.advance(start, [tokens], sparse, size, devices=devices)
    del embed, start
    for t, block in enumerate(finished):
        advance_dense(t, to_device(source.block(t)))
        advance_sparse(t, devices.agree(steps.to_device(block.read())))

    # what a block's end takes of the host is done while an accelerator is at the next block
    with Behind(apart=jax.default_backend() != "cpu") as behind:
        for t in range(len(finished), n_blocks):
            stored = source.block(t)
            params, tuned = to_device(stored), None
            with clock("dense"):
                advance_dense(t, params)
            if t and method.compensates and compensation.epochs:
                with clock("compensate"):
                    params, tuned = compensate(  # a sample at a time: nothing for devices to share
                        tuned_as[t],
                        devices.first(params),
                        sparse,
                        dense,
                        epochs=compensation.epochs,
                        lr=compensation.lr,
                        gamma=compensation.gamma,
                        seed=(seed, t),
                        again=partial(to_device, stored, ONE),
                        tick=ticker(t, "compensate"),
                    )
                    params = devices.agree(params)
            with clock("statistics"):
                seen = statistics(t, params)
            with clock("prune"):
                stored_as = {s.name: stored[s.name]["kernel"].dtype.name for s in family.linears}
                params, grids, layers = prune_block(
                    family,
                    params,
                    seen,
                    budget[t],
                    config,
                    quant,
                    stored_as,
                    ticker(t, "prune"),
                    where=f" of block {t}",
                    devices=devices,
                )
                leaves, tree = jax.tree.flatten(params)
                dtypes = tuple(leaf.dtype for leaf in jax.tree.leaves(stored))
                del params
                params = jax.tree.unflatten(tree, steps.rounded(leaves, dtypes))
            with clock("sparse"):
                energies = advance_sparse(t, params)
            with clock("write", give_back=False):  # the next block will be as large
                pruned = _to_store(params, stored, None if tuned else budget[t])
                behind.run(partial(sink.write, t, pruned, grids))
                del pruned
            distance, energy = np.sum(np.asarray(energies, np.float64), axis=0)
            error = float(distance / max(energy, np.finfo(np.float64).tiny))
            reports.append(BlockReport(t, tuple(layers), error, tuned, clock.take()))
            check_share(reports, {s.name: s.tap for s in family.linears}, n_blocks)
            behind.then(partial(seal, reports[-1]))
    return reports


def _to_store(params: Params, stored: Params, only: Mapping[str, int] | None) -> Params:
    """The block in its stored dtypes; with `only`, all but those kernels are the stored leaves."""

    def leaf(path, new, old):
        if only is not None and not (path[0].key in only and path[-1].key == "kernel"):
            return old
        return steps.stored(new, old)

    return jax.tree_util.tree_map_with_path(leaf, params, stored)
