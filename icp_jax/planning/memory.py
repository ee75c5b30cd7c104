"""The memory that a run needs, phase by phase, with given settings.

The arrays that the pipeline holds are counted; what XLA needs beside them is asked of the
compiled functions themselves, which also fills the compilation cache for the run. Where the
device is the host itself, one memory holds both.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax import backend
from icp_jax.backend import heap
from icp_jax.config import MemoryConfig
from icp_jax.core import quantize, stats
from icp_jax.core.masks import parse_pattern
from icp_jax.core.passes import Apply, no_statistics
from icp_jax.core.pruners import METHODS
from icp_jax.errors import InputError
from icp_jax.planning import cost
from icp_jax.planning.workload import Workload, size
from icp_jax.streaming import passes, storage, transfer, tune

Params = dict[str, Any]
# Of the host, seen on the CPU: what the runtime takes once programs run (threads, packing
# buffers, LAPACK), and the share that an allocator keeps of the arrays that are freed.
RUNTIME, SLACK = 80 << 20, 0.15
PINNED = 2  # XLA takes pinned memory from the system in ever doubled pieces: at most so much
DAMPING: Any = np.float32(0.01)  # it is traced, as float32


class Phase(NamedTuple):
    """One phase. device, host: bytes at once, in the worst block."""

    name: str
    device: int
    host: int
    flops: float  # of the whole run
    moved: int  # bytes between host and device, of the whole run


class Need(NamedTuple):
    """What a run takes. With the CPU as device, `host` holds all and `device` is a part of it."""

    phases: tuple[Phase, ...]
    memory: MemoryConfig  # with the place and the batch that this holds for
    streams: int  # bytes of both
    base: int  # bytes of the program itself, in `host`
    disk: int  # bytes, of the new checkpoint and of what is kept until it is whole

    @property
    def device(self) -> int:
        return max(phase.device for phase in self.phases)

    @property
    def host(self) -> int:
        return max(phase.host for phase in self.phases)


class Programs:
    """Compiled functions, kept while a plan is made: they take memory too."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def beside(self, function: Any, *args: Any, **kwargs: Any) -> int:
        """Bytes a function takes beside its arguments: temporaries and new outputs."""
        args, kwargs = jax.tree.map(_placed, (args, kwargs))  # as the run's, or it compiles its own
        self.kept.append(function.lower(*args, **kwargs).compile())
        found = self.kept[-1].memory_analysis()
        if found is None:
            raise InputError("this backend does not say what memory its programs need")
        return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def need(work: Workload, memory: MemoryConfig) -> Need:
    """Bytes by phase with these settings; `memory.streams` must be a place, not auto."""
    family, samples = work.family, work.config.calibration.count
    one, programs = work.hidden(memory.stream_dtype), Programs()
    heap.give_back()
    bare = storage.proc("self/status", "VmRSS")
    positions = int(np.prod(one.shape[1:-1]))
    devices = work.config.devices or 1
    batch = transfer.batch_size(-(-samples // devices), positions, memory.batch_tokens)  # of each
    gather = transfer.gather_size(samples, size(one))
    at_once = dict.fromkeys(cost.PHASES, 0)
    at_once["embed"] = _embedding(work, memory.stream_dtype, batch, programs)
    for module, block in _kinds(work):
        parts = _on_device(work, module, block, one, batch, gather, memory.remat, devices, programs)
        for phase, found in parts:
            at_once[phase] = max(at_once[phase], found)
    heap.give_back()
    base = storage.proc("self/status", "VmRSS") + RUNTIME
    del programs
    both, stored = 2 * samples * size(one), [size(block) for block in work.blocks]
    embed = size(work.embed)
    kept = {"device": 0, "host": 0, "disk": 0} | {memory.streams: both}
    given = samples * size(work.sample)  # the run keeps them: of images, more than all else
    flops = cost.flops(family, work.shapes, work.config, positions)
    moved = cost.moved(family, work.config, both // 2, embed, stored, memory.streams == "device")
    phases = []
    for name in cost.PHASES:
        first = name == "embed"  # one stream is still empty; nothing was compiled or freed before
        there = {place: count // (2 if first else 1) for place, count in kept.items()}
        # between "dense" and "write" nothing of the source's block is held
        arrays = {"embed": embed, "dense": max(stored), "write": max(stored)}.get(name, 0)
        arrays += given
        arrays += there["host"] * (1 if backend.is_host() else PINNED)
        if backend.is_host():
            arrays += there["device"] + devices * at_once[name]
        else:
            arrays += 0 if first else max(stored)  # the block before is still being written
            if memory.streams != "device":
                arrays += 4 * max(batch, gather) * size(one)
        host = bare + RUNTIME + arrays if first else base + int(arrays * (1 + SLACK))
        phases.append(Phase(name, at_once[name] + there["device"], host, flops[name], moved[name]))
    whole = sum(stored) + embed + work.others
    disk = whole + sum(stored) + kept["disk"]
    return Need(tuple(phases), memory, both, base, disk)


def _embedding(work: Workload, dtype: str, batch: int, programs: Programs) -> int:
    """Bytes at once on the device while the first stream is made."""
    params = jax.tree.map(lambda leaf: _shape(leaf.shape), work.embed)
    tokens = _shape((batch, *work.sample.shape[1:]), work.sample.dtype)
    step = programs.beside(passes.embed_batch, work.family.embed, dtype, params, tokens)
    return size(params) + max(size(work.embed), 2 * size(tokens) + step)


def _kinds(work: Workload) -> Iterator[tuple[Any, Params]]:
    """Blocks that differ in module or shapes: one of each kind."""
    seen = set()
    for t, block in enumerate(work.blocks):
        kind = (work.family.block_at(t), tuple(x.shape for x in jax.tree.leaves(block)))
        if kind not in seen:
            seen.add(kind)
            yield kind[0], block


def _shape(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _placed(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=storage.here())


def _on_device(
    work, module, block, one, batch, gather, remat, devices, programs
) -> Iterator[tuple[str, int]]:
    """(phase, bytes at once on the device), several a phase; the streams left out."""
    family, config = work.family, work.config
    method = METHODS[config.prune.method]
    apply = Apply(module, passes.compute_dtype(config.dtype))
    params = jax.tree.map(lambda leaf: _shape(leaf.shape), block)
    x, some = (_shape((n, *one.shape[1:]), one.dtype) for n in (batch, gather))
    held, sent, count = size(params), size(x), np.int32(1)
    # an accelerator's first device has whole what it splits among several, and what it joins
    whole = sent * devices if devices > 1 and not backend.is_host() else 0
    yield "write", held + size([x for x in jax.tree.leaves(block) if x.dtype != jnp.float32])
    dense = programs.beside(passes.forward, apply, params, x, count)
    yield "dense", held + 3 * sent + 5 * whole + dense  # in: now and next; out: the last one
    sparse = programs.beside(passes.forward_beside, apply, params, x, x, count)
    yield "sparse", held + 5 * sent + 8 * whole + sparse
    if method.compensates and config.compensate.epochs and family.n_blocks > 1:
        state = jax.eval_shape(tune.start, params)
        tuned_as = apply.rematerialised() if remat else apply
        tuning = (tune._steps, tuned_as, state, None, some, some, count)
        yield "compensate", size(state) + 4 * size(some) + programs.beside(*tuning)
    shapes = {s.name: block[s.name]["kernel"].shape for s in family.linears}
    tokens = config.calibration.count * int(np.prod(one.shape[1:-1]))
    seen = jax.eval_shape(partial(no_statistics, family, shapes, tokens))
    collect = programs.beside(passes.collect, apply, params, x, seen, count)
    yield "statistics", held + size(seen) + 2 * sent + 3 * whole + collect
    for tap in family.tap_widths(shapes):
        linears = [
            (shapes[s.name], seen.energies.get(s.name)) for s in family.linears if s.tap == tap
        ]
        for found in _tap(config, seen.sums, tap, linears, programs):
            yield "prune", held + found
        del seen.sums[tap]


def _tap(config, sums, tap, linears, programs) -> Iterator[int]:
    """Bytes at once for one tap's linears, beside the params."""
    method, pattern = METHODS[config.prune.method], parse_pattern(config.prune.pattern)
    yield size(sums) + programs.beside(stats.moments, sums[tap])
    moments, count = jax.eval_shape(stats.moments, sums[tap]), np.int32(1)
    held = size(sums) - size(sums[tap]) + size(moments)
    for shape, total in linears:
        yield held + programs.beside(stats.energy, _shape(shape), moments, total)
    prepared = jax.eval_shape(lambda m: method.prepare(m, DAMPING), moments)
    options: dict[str, Any] = {}
    if method.walks:
        options["block"] = config.prune.block_size
        yield held + programs.beside(method.prepare, moments, DAMPING)
        held += size(prepared) - size(moments)
    for shape, _ in linears:
        kernel = _shape(shape)
        if config.quant.bits is not None:
            q, diagonal = config.quant, _shape(shape[:1])
            ranges = {"group": q.group, "symmetric": q.symmetric, "search": q.search}
            making = partial(quantize.make_grid, **ranges)
            grid = jax.eval_shape(making, kernel, count, importance=diagonal)
            made = (quantize.make_grid, kernel, count)
            yield held + programs.beside(*made, importance=diagonal, **ranges)
            if method.walks:
                options["grid"] = grid
            else:
                rounding = (quantize.round_kernel, kernel, _shape(shape, bool), grid)
                yield held + 2 * size(kernel) + programs.beside(*rounding)
        pruning = (method.prune, kernel, prepared, count)
        yield held + programs.beside(*pruning, pattern=pattern, **options)
        if not method.walks:
            compared = programs.beside(stats.lost_energy, kernel, kernel, moments)
            yield held + size(kernel) + compared
