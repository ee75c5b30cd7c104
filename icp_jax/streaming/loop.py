"""The streaming loop: `core.icp` one block at a time, with the streams wherever they fit.

After block t is pruned, the dense stream passes through block t+1. Block t+1, still dense, is
tuned to map the sparse stream to the dense one, and then pruned on the sparse stream.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from icp_jax import backend, phases
from icp_jax.backend import heap
from icp_jax.core import outcomes, quantize, retune
from icp_jax.core.choice import LEFT
from icp_jax.core.fate import CompensationMetrics, not_compensated
from icp_jax.core.hyper import sample_order
from icp_jax.core.outcomes import BlockReport
from icp_jax.core.passes import Apply, Params, Statistics, no_statistics
from icp_jax.core.prune import LayerMetrics
from icp_jax.errors import InputError
from icp_jax.phases import Phase
from icp_jax.streaming import passes, storage, transfer
from icp_jax.streaming.ahead import Ahead
from icp_jax.streaming.background import Background
from icp_jax.streaming.clock import Clock
from icp_jax.streaming.job import Hooks, Job, Sink, Source
from icp_jax.streaming.mesh import ONE, Devices
from icp_jax.streaming.prune import prune_block
from icp_jax.streaming.storage import Stream
from icp_jax.streaming.tune import Tuning, compensate


def prune_blocks(
    source: Source,
    sink: Sink,
    tokens: np.ndarray,
    job: Job,
    hooks: Hooks | None = None,
    devices: Devices = ONE,
) -> list[BlockReport]:
    """Prune every block of a model on calibration tokens `[N, T]`, or images, into the sink.

    Finished blocks only advance the streams; the result equals that of an uninterrupted run.
    devices: share the work. If they belong to several processes, each must call this function
    with the same arguments, and each sink gets every block. Raises InputError if a block's output
    is not finite, or if more than a tenth of the layers needed a remedy (`outcomes.check`).
    """
    hooks = hooks or Hooks()
    reports, n_blocks = [block.report for block in hooks.finished], source.family.n_blocks
    if len(reports) == n_blocks:
        return reports
    loop = Loop(source, tokens, job, hooks, devices)
    for t, block in enumerate(hooks.finished):
        loop.dense(t, loop.to_device(source.block(t)))
        loop.sparse(t, devices.agree(passes.to_device(block.read())))
    # the host writes a block while an accelerator computes the next one
    with Background(apart=not backend.is_host()) as writer:
        for t in range(len(reports), n_blocks):
            stored = source.block(t)
            report, pruned, grids = loop.block(t, stored)
            writer.run(partial(sink.write, t, pruned, grids))
            del pruned
            reports.append(report)
            outcomes.check(reports, source.family)
            writer.then(partial(hooks.seal, report))
    return reports


@dataclass
class Loop:
    """The two streams and the steps of a block."""

    source: Source
    tokens: np.ndarray
    job: Job
    hooks: Hooks
    devices: Devices
    clock: Clock = field(init=False)
    compiled: set[Phase] = field(default_factory=set)  # phases that have run once

    def __post_init__(self) -> None:
        family, recipe, embed = self.source.family, self.job.recipe, self.source.embed()
        shapes = [self.source.shapes(t).values() for t in range(family.n_blocks)]
        weights = max(sum(i * o for i, o in block) for block in shapes)
        width = max(sum(i + o for i, o in block) for block in shapes)
        self.clock = Clock(freed=4 * 4 * weights)  # params, gradient and Adam's moments, in float32
        one = passes.hidden(family, embed, self.tokens[:1], recipe.stream_dtype)
        shape = (len(self.tokens), *one.shape[1:])
        self.positions = int(np.prod(shape[1:-1]))
        size = transfer.batch_size(
            len(self.tokens), self.positions, self.job.batch_tokens, self.devices.count
        )
        self.size = self.devices.tell(size)
        # a pass holds about the inputs and outputs of the linears, in float32
        self.settle = Ahead(4 * self.size * self.positions * width)
        self.devices.check_same("calibration samples", self.tokens)
        both = 2 * int(np.prod(shape)) * np.dtype(recipe.stream_dtype).itemsize
        half = storage.host_free() // 2
        place = storage.choose(self.job.place, both, storage.device_free() // 2, half)
        # jaxlib may hold arrays of an earlier run until the next garbage collection
        gc.collect(0)
        streams_ = [
            storage.empty(shape, recipe.stream_dtype, place, self.hooks.scratch) for _ in range(2)
        ]
        self.sparse_stream: Stream = streams_[0]
        self.dense_stream: Stream = streams_[1]
        start = passes.embed_tokens(family, embed, recipe.stream_dtype, self.devices)
        transfer.advance(start, [self.tokens], self.sparse_stream, self.size, devices=self.devices)

    def advance(self, step: Any, arrays: list[Stream], out: Stream, tick: Any) -> list[Any]:
        return transfer.advance(step, arrays, out, self.size, tick, self.devices, self.settle)

    def apply(self, t: int) -> Apply:
        return Apply(self.source.family.block_at(t), self.job.recipe.dtype)

    def ticker(
        self, block: int, phase: Phase, step: int = 0, steps: int = 1
    ) -> Callable[..., None]:
        """Report the progress of a phase, or of one step of it."""

        def tick(done: int, total: int, loss: float | None = None) -> None:
            if phase not in self.compiled:
                heap.give_back()  # the compiler's memory
                self.compiled.add(phase)
            self.hooks.progress(block, phase.name, step * total + done, steps * total, loss)

        return tick

    def to_device(self, stored: Params, devices: Devices | None = None) -> Params:
        params = transfer.settle(passes.to_device(stored, devices or self.devices))
        self.source.forget()
        return params

    def dense(self, t: int, params: Params) -> None:
        """Pass the dense stream through block t, before the block is changed."""
        targets = self.hooks.targets
        if targets is not None and targets.read(t, self.dense_stream):
            return
        step, before = partial(passes.forward, self.apply(t), params), self.dense_stream
        before = before if t else self.sparse_stream
        tick = self.ticker(t, phases.DENSE)
        _finite(t, self.advance(step, [before], self.dense_stream, tick))
        if targets is not None:
            targets.write(t, self.dense_stream)

    def sparse(self, t: int, params: Params) -> dict[str, float]:
        """Pass the sparse stream through pruned block t. Returns the errors of `BlockReport`."""
        step = partial(passes.forward_beside, self.apply(t), params)
        both, tick = [self.sparse_stream, self.dense_stream], self.ticker(t, phases.SPARSE)
        found = self.advance(step, both, self.sparse_stream, tick)
        lost, energies, of_tokens = zip(*found, strict=True)
        _finite(t, [lost, energies])
        of_real = np.concatenate(of_tokens)[: len(self.tokens)]  # the last batch is padded
        return passes.stream_errors(lost, energies, of_real)

    def tune(
        self,
        t: int,
        phase: Phase,
        params: Params,
        again: Callable[[], Params],
        keep: Any = None,
        step: int = 0,
    ) -> tuple[Params, CompensationMetrics]:
        """Tune block t to map the sparse stream to the dense one.

        The params are donated; `again` gives them once more. keep: masks that are held. step: of
        the pruning, after which it is tuned.
        """
        job, hyper = self.job, self.job.hyper
        apply = self.apply(t).rematerialised() if job.recipe.remat else self.apply(t)
        order: Any = sample_order((job.seed, t), hyper.orders, len(self.tokens))
        first, before = phase is phases.COMPENSATE, len(hyper.rates)
        rates = np.asarray(hyper.rates if first else hyper.retune[step])
        order = order[:before] if first else retune.split(order[before:], hyper)[step]
        tick = self.ticker(t, phase, *((0, 1) if first else (step, len(hyper.retune))))
        # one sample at a time: there is nothing to share between devices
        tuning = Tuning(apply, self.sparse_stream, self.dense_stream, keep, tick)
        compiles = backend.is_host() and phase not in self.compiled
        params, found = compensate(tuning, params, rates, order, again, compiles)
        return self.devices.agree(params), found

    def retune(self, t: int, step: int, params: Params) -> tuple[Params, CompensationMetrics]:
        """Tune the kept weights of block t after a step of its pruning."""
        params = self.devices.first(params)
        held = jax.tree.map(lambda x: np.array(x, copy=True), params)  # the params are donated
        keep = retune.masks(self.source.family, params)
        again = partial(jax.device_put, held, storage.here())
        return self.tune(t, phases.RETUNE, params, again, keep, step)

    def statistics(self, t: int, params: Params, step: int = 0) -> Statistics:
        """The pruners' statistics of the linears' inputs, on the sparse stream."""
        family = self.source.family
        tick = self.ticker(t, phases.STATISTICS, step, len(self.job.hyper.retune))
        seen = no_statistics(family, self.source.shapes(t), len(self.tokens) * self.positions)
        seen = self.devices.whole(seen)
        for where, (x,), valid in transfer.batches(
            [self.sparse_stream], self.size, devices=self.devices
        ):
            seen = self.settle(passes.collect(self.apply(t), params, x, seen, valid))
            tick(where.stop, len(self.tokens))
        return jax.block_until_ready(seen)

    def prune(
        self, t: int, params: Params, stored_as: Mapping[str, str]
    ) -> tuple[Params, Mapping[str, quantize.Grid], LayerMetrics, CompensationMetrics]:
        """Prune block t in steps, and tune it after each, see `core.retune`.

        params: emptied. stored_as: the stored dtype of each linear.
        """
        family, job = self.source.family, self.job
        hyper = job.hyper._replace(counts=job.hyper.counts[t])
        tunes = (hyper.counts != LEFT).any() and phases.RETUNE.of_block(t, job.epochs)
        steps, tuned = [], not_compensated(0)
        for k in range(len(hyper.retune)):
            with self.clock(phases.STATISTICS):
                seen = self.statistics(t, params, k)
            with self.clock(phases.PRUNE):
                part = retune.step(hyper, job.recipe, k)
                tick = self.ticker(t, phases.PRUNE, k, len(hyper.retune))
                params, grids, found = prune_block(
                    family, params, seen, *part, stored_as, self.devices, tick
                )
                del seen
            if tunes:
                with self.clock(phases.RETUNE):
                    params, tuned = self.retune(t, k, params)
                    found = retune.recounted(family, params, found, stored_as)
            steps.append((found, tuned))
        return params, grids, *jax.device_get(retune.joined(steps))

    def block(
        self, t: int, stored: Params
    ) -> tuple[BlockReport, Params, Mapping[str, quantize.Grid]]:
        """Prune block t. Returns (report, params in their stored dtypes, grids)."""
        family, epochs, tuned = self.source.family, self.job.epochs, not_compensated(0)
        params = self.to_device(stored)
        with self.clock(phases.DENSE):
            self.dense(t, params)
        damaged = (self.job.hyper.counts[:t] != LEFT).any()  # by the blocks before
        if damaged and phases.COMPENSATE.of_block(t, epochs):
            with self.clock(phases.COMPENSATE):
                again = partial(self.to_device, stored, ONE)
                params = self.devices.first(params)
                params, tuned = self.tune(t, phases.COMPENSATE, params, again)
        kernels = {s.name: stored[s.name]["kernel"] for s in family.linears}
        stored_as = {name: kernel.dtype.name for name, kernel in kernels.items()}
        params, grids, found, tuned_again = self.prune(t, params, stored_as)
        became, again_became = map(outcomes.compensation_report, (tuned, tuned_again))
        with self.clock(phases.SPARSE):
            sizes = {name: kernel.size for name, kernel in kernels.items()}
            damping = float(self.job.hyper.damping)
            layers = outcomes.layer_reports(family, sizes, found, damping, f"block {t}")
            leaves, tree = jax.tree.flatten(params)
            dtypes = [leaf.dtype for leaf in jax.tree.leaves(stored)]
            del params
            params = jax.tree.unflatten(tree, passes.rounded(leaves, dtypes))
            errors = self.sparse(t, params)
        with self.clock(phases.WRITE, give_back=False):  # the next block reuses this memory
            pruned = _to_store(params, stored, None if became or again_became else kernels)
        report = BlockReport(
            t, layers, compensation=became, retune=again_became, seconds=self.clock.take(), **errors
        )
        return report, pruned, grids


def _finite(block: int, energies: Sequence[Any]) -> None:
    if not np.all(np.isfinite(energies)):
        raise InputError(f"block {block} returns values that are not finite (NaN or infinity)")


def _to_store(params: Params, stored: Params, only: Mapping[str, Any] | None) -> Params:
    """The block in its stored dtypes. With `only`, leaves other than those kernels stay as is."""

    def leaf(path, new, old):
        if only is not None and not (path[0].key in only and path[-1].key == "kernel"):
            return old
        return passes.stored(new, old)

    return jax.tree_util.tree_map_with_path(leaf, params, stored)
