"""The memory a run will need, phase by phase, before it runs; and the settings that fit.

The arrays that the pipeline holds are counted; what XLA needs beside them is asked of the
compiled functions themselves, which also fills the compilation cache for the run. Where the
device is the host itself, one memory holds both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax import compensation, cost, heap, places, quantize, stats, steps, streams
from icp_jax.budgets import budgets
from icp_jax.config import MemoryConfig, RunConfig, check, parse_bytes
from icp_jax.errors import InputError
from icp_jax.masks import parse_pattern
from icp_jax.pruners import METHODS
from icp_jax.residency import FolderSource
from icp_jax.workload import Workload, describe, resolved, size, workload

Params = dict[str, Any]
# Of the host, seen on the CPU: what the runtime takes once programs run (threads, packing
# buffers, LAPACK), and the share that an allocator keeps of the arrays that are freed.
RUNTIME, SLACK = 80 << 20, 0.15


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
        self.kept.append(function.lower(*args, **kwargs).compile())
        found = self.kept[-1].memory_analysis()
        if found is None:
            raise InputError("this backend does not say what memory its programs need")
        return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def need(work: Workload, memory: MemoryConfig) -> Need:
    """Bytes by phase with these settings; `memory.streams` must be a place, not auto."""
    family, samples = work.family, work.config.calibration.samples
    one, programs = work.hidden(memory.stream_dtype), Programs()
    bare = places.proc("self/status", "VmRSS")
    positions = int(np.prod(one.shape[1:-1]))
    devices = work.config.devices or 1
    batch = streams.batch_size(-(-samples // devices), positions, memory.batch_tokens)  # of each
    gather = streams.gather_size(samples, size(one))
    at_once = dict.fromkeys(cost.PHASES, 0)
    at_once["embed"] = _embedding(work, memory.stream_dtype, batch, programs)
    for module, block in _kinds(work):
        parts = _on_device(work, module, block, one, batch, gather, memory.remat, programs)
        for phase, found in parts:
            at_once[phase] = max(at_once[phase], found)
    heap.give_back()
    base = places.proc("self/status", "VmRSS") + RUNTIME
    del programs
    both, stored = 2 * samples * size(one), [size(block) for block in work.blocks]
    embed = size(work.embed)
    kept = {"device": 0, "host": 0, "disk": 0} | {memory.streams: both}
    flops = cost.flops(family, work.shapes, work.config, positions)
    moved = cost.moved(family, work.config, both // 2, embed, stored, memory.streams == "device")
    phases = []
    for name in cost.PHASES:
        full = 2 if name == "embed" else 1  # one stream is still empty then
        device = at_once[name] + kept["device"] // full
        arrays = kept["host"] // full
        # between "dense" and "write" nothing of the source's block is held
        arrays += {"embed": embed, "dense": max(stored), "write": max(stored)}.get(name, 0)
        if jax.default_backend() == "cpu":
            arrays += kept["device"] // full + devices * at_once[name]
        elif memory.streams != "device":
            arrays += 4 * max(batch, gather) * size(one)
        host = base + int(arrays * (1 + SLACK))
        if name == "embed":  # no other program is there yet, and nothing freed is kept
            host = bare + RUNTIME + arrays
        phases.append(Phase(name, device, host, flops[name], moved[name]))
    whole = sum(stored) + embed + work.others
    disk = whole + sum(stored) + kept["disk"]
    return Need(tuple(phases), memory, both, base, disk)


def _embedding(work: Workload, dtype: str, batch: int, programs: Programs) -> int:
    """Bytes at once on the device while the first stream is made."""
    params = jax.tree.map(lambda leaf: _shape(leaf.shape), work.embed)
    tokens = _shape((batch, *work.sample.shape[1:]), work.sample.dtype)
    step = programs.beside(steps.embed_batch, work.family.embed, dtype, params, tokens)
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


def _on_device(
    work, module, block, one, batch, gather, remat, programs
) -> Iterator[tuple[str, int]]:
    """(phase, bytes at once on the device), several a phase; the streams left out."""
    family, config = work.family, work.config
    method = METHODS[config.prune.method]
    apply = steps.Apply(module, steps.compute_dtype(config.dtype))
    params = jax.tree.map(lambda leaf: _shape(leaf.shape), block)
    x, some = (_shape((n, *one.shape[1:]), one.dtype) for n in (batch, gather))
    held, sent, count = size(params), size(x), _shape((), jnp.int32)
    yield "write", held
    dense = programs.beside(steps.forward, apply, params, x, count)
    yield "dense", held + 3 * sent + dense  # in: now and next; out: the last one
    sparse = programs.beside(steps.forward_beside, apply, params, x, x, count)
    yield "sparse", held + 5 * sent + sparse
    if method.compensates and config.compensate.epochs and family.n_blocks > 1:
        state = jax.eval_shape(compensation._adam.init, params)
        rate = _shape(())
        tuned_as = apply.rematerialised() if remat else apply
        tuning = (compensation._steps, tuned_as, params, state, None, some, some, count, rate)
        yield "compensate", held + size(state) + 4 * size(some) + programs.beside(*tuning)
    shapes = {s.name: block[s.name]["kernel"].shape for s in family.linears}
    seen = jax.eval_shape(partial(steps.no_statistics, family, shapes))
    collect = programs.beside(steps.collect, apply, params, x, seen, count)
    yield "statistics", held + size(seen) + 2 * sent + collect
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
    moments, count = jax.eval_shape(stats.moments, sums[tap]), _shape((), jnp.int32)
    held = size(sums) - size(sums[tap]) + size(moments)
    prepared = jax.eval_shape(lambda m: method.prepare(m, 0.01), moments)
    options: dict[str, Any] = {}
    if method.walks:
        options["block"] = config.prune.block_size
        yield held + programs.beside(method.prepare, moments, 0.01)
        held += size(prepared)
    for shape, total in linears:
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
        lost = [_shape(())] if method.walks else []
        compared = (stats.output_error, kernel, kernel, moments, *lost)
        yield held + size(kernel) + programs.beside(*compared, total=total)


class Plan(NamedTuple):
    """What `icp-jax plan` says. seconds: the least time of each phase at the measured rates."""

    model: str
    device_kind: str
    limits: dict[str, int | None]  # of device and host, in bytes
    need: Need
    rates: cost.Rates
    seconds: dict[str, float]

    def record(self) -> dict[str, Any]:
        """As plain values, for JSON; memory in bytes."""
        need = self.need
        return {
            "model": self.model,
            "device": self.device_kind,
            "limits": self.limits,
            "peak": {"device": need.device, "host": need.host, "disk": need.disk},
            "memory": dataclasses.asdict(need.memory),
            "stream_bytes": need.streams,
            "phases": [p._asdict() | {"seconds": self.seconds[p.name]} for p in need.phases],
            "rates": self.rates._asdict(),
            "seconds": sum(self.seconds.values()),
        }


def plan(config: RunConfig, device: str = "", host: str = "") -> Plan:
    """Plan a run of `config` on this machine, or within so much memory (`8GiB`).

    Writes nothing but the compilation cache. Raises InputError where nothing fits.
    """
    check(config)
    source = describe(config.model)
    work = workload(source, resolved(config, source))
    budgets(work.family, work.shapes, config.prune, config.quant)
    limits = _limits(config.memory, device, host, free=True)
    need = fit(work, **limits)
    rates = cost.measure(work.config.dtype)
    work_by_phase = {p.name: p.flops for p in need.phases}
    seconds = rates.seconds(work_by_phase, {p.name: p.moved for p in need.phases})
    kind = jax.local_devices()[0].device_kind
    return Plan(config.model, kind, limits, need, rates, seconds)


def settle(source: FolderSource, config: RunConfig) -> RunConfig:
    """A resolved config whose place and batch fit, with nothing left open that roundings hang on.

    On the CPU without limits the defaults are taken, whatever is free.
    """
    limits, memory = _limits(config.memory, free=jax.default_backend() != "cpu"), config.memory
    if any(limits.values()):
        memory = fit(workload(source, config), **limits).memory
    batch = memory.batch_tokens or streams.batch_tokens()
    memory = dataclasses.replace(memory, batch_tokens=batch, remat=bool(memory.remat))
    return dataclasses.replace(config, memory=memory)


def _limits(
    memory: MemoryConfig, device: str = "", host: str = "", *, free: bool
) -> dict[str, int | None]:
    """Bytes of each memory; free: where none are set, what is free."""
    found = {
        "device": parse_bytes("device memory", device or memory.device),
        "host": parse_bytes("host memory", host or memory.host),
    }
    if free:
        found["host"] = found["host"] or places.host_free() + places.proc("self/status", "VmRSS")
        if jax.default_backend() != "cpu":
            found["device"] = found["device"] or places.device_free()
    return found


def fit(work: Workload, device: int | None = None, host: int | None = None) -> Need:
    """The first settings that fit into so many bytes; those that are set stay as they are.

    In order: streams on the device, on the host, on disk; in each, where compensation is what does
    not fit, rematerialised; then batches of half the size, down to one sample. Raises InputError
    that says how much is missing, and for what.
    """
    memory = work.config.memory
    kinds: tuple[places.Place, ...]
    kinds = ("host", "disk") if jax.default_backend() == "cpu" else ("device", "host", "disk")
    least: tuple[int, str] | None = None
    for place in kinds if memory.streams == "auto" else (memory.streams,):
        tries, remat = _batches(work), memory.remat
        while tries:
            found = need(
                work,
                dataclasses.replace(memory, streams=place, batch_tokens=tries[0], remat=remat),
            )
            missing = {"device": found.device - (device or found.device)}
            missing["host"] = found.host - (host or found.host)
            if max(missing.values()) <= 0:
                return found
            where = max(missing, key=lambda name: missing[name])
            phase = max(found.phases, key=lambda phase: getattr(phase, where)).name
            if least is None or missing[where] < least[0]:
                least = missing[where], f"{gib(missing[where])} of {where} memory for {phase}"
            if phase == "compensate" and remat is None:
                remat = True
            else:
                tries.pop(0)
    assert least is not None
    raise InputError(f"this does not fit with any place and batch: too little by {least[1]}")


def _batches(work: Workload) -> list[int | None]:
    """What is set; or the default, and then halves of it, down to one sample."""
    memory, one = work.config.memory, work.hidden()
    positions = int(np.prod(one.shape[1:-1]))
    share = -(-work.config.calibration.samples // (work.config.devices or 1))
    batch = streams.batch_size(share, positions)
    found: list[int | None] = [memory.batch_tokens]
    while memory.batch_tokens is None and batch > 1:
        batch //= 2
        found.append(batch * positions)
    return found


def gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB"
