"""Device memory of each phase, in bytes, without the streams.

Each function yields the bytes in use at several points of the phase; the largest one counts.
Temporaries are XLA's figures for the run's own functions. Compiling them also fills the
compilation cache for the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from icp_jax.core import quantize, stats
from icp_jax.core.choice import fits
from icp_jax.core.masks import parse_pattern
from icp_jax.core.passes import Statistics, no_statistics
from icp_jax.core.retune import masks
from icp_jax.planning.programs import shape
from icp_jax.planning.setting import Block, Setting
from icp_jax.planning.workload import size
from icp_jax.streaming import distill_steps, passes, tune

DAMPING: Any = np.float32(0.01)  # traced, so any float32 value will do


def embed(setting: Setting) -> Iterator[int]:
    """The first stream is computed."""
    work, dtype = setting.work, setting.memory.stream_dtype
    params = jax.tree.map(lambda leaf: shape(leaf.shape), work.embed)
    tokens = shape((setting.batch, *work.sample.shape[1:]), work.sample.dtype)
    step = setting.programs.beside(passes.embed_batch, work.family.embed, dtype, params, tokens)
    yield size(params) + max(size(work.embed), 2 * size(tokens) + step)


def dense(block: Block) -> Iterator[int]:
    step = block.beside(passes.forward, block.apply, block.params, block.x, block.count)
    # three batches: the current and the next input, and the last output
    yield block.held + 3 * block.sent + 5 * block.whole + step


def compensate(block: Block) -> Iterator[int]:
    yield from _tuning(block, None)


def retune(block: Block) -> Iterator[int]:
    """As the compensation, with masks."""
    yield from _tuning(block, jax.eval_shape(partial(masks, block.work.family), block.params))


def _tuning(block: Block, keep: Any) -> Iterator[int]:
    state, remat = jax.eval_shape(tune.start, block.params), block.setting.memory.remat
    apply = block.apply.rematerialised() if remat else block.apply
    few = block.few
    steps = block.beside(tune._steps, apply, state, keep, few, few, block.count)
    yield size(state) + size(keep) + 4 * size(few) + steps


def statistics(block: Block) -> Iterator[int]:
    seen = _seen(block)
    step = block.beside(passes.collect, block.apply, block.params, block.x, seen, block.count)
    yield block.held + size(seen) + 2 * block.sent + 3 * block.whole + step


def prune(block: Block) -> Iterator[int]:
    """One tap at a time; its sums are freed when it is done."""
    seen, linears = _seen(block), block.linears
    for tap, names in block.work.family.readers().items():
        held = block.held + size(seen.sums)
        yield held + block.beside(stats.moments, seen.sums[tap])
        moments = jax.eval_shape(stats.moments, seen.sums[tap])
        held += size(moments) - size(seen.sums.pop(tap))
        for name in names:
            energy = (shape(linears[name]), moments, seen.energies.get(name))
            yield held + block.beside(stats.energy, *energy)
        prepared = jax.eval_shape(lambda m: block.method.prepare(m, DAMPING), moments)
        if block.method.prepare_flops:
            yield held + block.beside(block.method.prepare, moments, DAMPING)
            held += size(prepared)
        if block.method.walks:  # the moments are freed
            held -= size(moments)
        for name in names:
            for found in _linear(block, shape(linears[name]), moments, prepared):
                yield held + found


def sparse(block: Block) -> Iterator[int]:
    x = block.x
    step = block.beside(passes.forward_beside, block.apply, block.params, x, x, block.count)
    yield block.held + 5 * block.sent + 8 * block.whole + step


def write(block: Block) -> Iterator[int]:
    yield block.held + block.narrow


def global_pass(block: Block) -> Iterator[int]:
    """A step: forward through the block, at the output layer, and back with Adam's state."""
    config, work = block.work.config.global_pass, block.work
    x = shape((config.batch or 1, *block.setting.one.shape[1:]))
    forward = block.beside(distill_steps.forward, block.apply, block.params, x)
    yield block.held + 2 * size(x) + forward
    one = shape((1, *block.setting.one.shape[1:]))  # of the dense model, and held out
    step = block.beside(passes.forward, block.apply, block.params, one, block.count)
    yield block.held + 3 * size(one) + step
    head = block.beside(distill_steps.loss_and_slope, work.family.head, work.head, work.head, x, x)
    yield size(work.head) + 2 * size(x) + head
    state = jax.eval_shape(tune.start, block.params)
    given = work.family, block.apply, state, shape(()), x, x
    yield size(state) + 2 * size(x) + block.beside(distill_steps.backward, *given)


def _seen(block: Block) -> Statistics:
    setting = block.setting
    tokens = setting.samples * setting.positions
    return jax.eval_shape(partial(no_statistics, block.work.family, block.linears, tokens))


def _linear(block: Block, kernel: Any, moments: Any, prepared: Any) -> Iterator[int]:
    """Bytes for pruning one linear, without the params and the statistics."""
    method, beside, config = block.method, block.beside, block.work.config
    pattern = parse_pattern(config.prune.pattern)
    if not fits(kernel.shape[0], pattern, config.quant.group):
        return  # it is left as it is
    options: dict[str, Any] = {}
    if method.walks:
        options["block"] = config.prune.block_size
    if config.quant.bits is not None:
        q, diagonal = config.quant, shape(kernel.shape[:1])
        ranges = {"group": q.group, "symmetric": q.symmetric, "search": q.search}
        making = partial(quantize.make_grid, **ranges)
        grid = jax.eval_shape(making, kernel, block.count, importance=diagonal)
        made = (quantize.make_grid, kernel, block.count)
        yield beside(*made, importance=diagonal, **ranges)
        if method.walks:
            options["grid"] = grid
        else:
            rounding = (quantize.round_kernel, kernel, shape(kernel.shape, bool), grid)
            yield 2 * size(kernel) + beside(*rounding)
    yield beside(method.prune, kernel, prepared, block.count, pattern=pattern, **options)
    if not method.walks:
        yield size(kernel) + beside(stats.lost_energy, kernel, kernel, moments)
