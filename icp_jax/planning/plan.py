"""A run planned before it runs: the settings that fit the memory there is, and the least time.

What a run needs with given settings is `icp_jax.planning.memory`'s.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from icp_jax import backend
from icp_jax.config import MemoryConfig, RunConfig, check, parse_bytes
from icp_jax.errors import InputError
from icp_jax.planning import cost
from icp_jax.planning.budgets import budgets
from icp_jax.planning.memory import Need, Phase, need
from icp_jax.planning.rates import Rates, measure
from icp_jax.planning.workload import Workload, describe, resolved, workload
from icp_jax.streaming import storage, transfer
from icp_jax.streaming.source import FolderSource


class Plan(NamedTuple):
    """What `icp-jax plan` says. seconds: the least time of each phase at the measured rates."""

    model: str
    device_kind: str
    limits: dict[str, int | None]  # of device and host, in bytes
    need: Need
    flops: dict[str, float]  # of the whole run, by phase
    moved: dict[str, int]  # bytes between host and device, of the whole run
    rates: Rates
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
            "phases": [self._phase(phase) for phase in need.phases],
            "rates": self.rates._asdict(),
            "seconds": sum(self.seconds.values()),
        }

    def _phase(self, phase: Phase) -> dict[str, Any]:
        name = phase.name
        work = {"flops": self.flops[name], "moved": self.moved[name]}
        return {**phase._asdict(), **work, "seconds": self.seconds[name]}


def plan(config: RunConfig, device: str = "", host: str = "") -> Plan:
    """Plan a run of `config` on this machine, or within so much memory (`8GiB`).

    Writes nothing but the compilation cache. Raises InputError where nothing fits.
    """
    config = check(config)
    for name, given in (("device", device), ("host", host)):
        if given and getattr(config.memory, name):
            raise InputError(f"{name} memory is given twice: leave memory.{name} out")
    source = describe(config.model)
    work = workload(source, resolved(config, source))
    budgets(work.family, work.shapes, config.prune, config.quant)
    limits = _limits(config.memory, device, host, free=True)
    found = fit(work, **limits)
    rates = measure(work.config.dtype)
    flops = cost.flops(work.family, work.shapes, work.config, work.positions)
    moved = cost.moved(work, found.memory)
    kind = jax.local_devices()[0].device_kind
    seconds = rates.seconds(flops, moved)
    return Plan(config.model, kind, limits, found, flops, moved, rates, seconds)


def settle(source: FolderSource, config: RunConfig) -> RunConfig:
    """A resolved config whose place and batch fit, with nothing left open that roundings hang on.

    On the CPU without limits the defaults are taken, whatever is free.
    """
    limits, memory = _limits(config.memory, free=not backend.is_host()), config.memory
    if any(limits.values()):
        memory = fit(workload(source, config), **limits).memory
    batch = memory.batch_tokens or transfer.batch_tokens()
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
        found["host"] = found["host"] or storage.host_free() + storage.proc("self/status", "VmRSS")
        if not backend.is_host():
            found["device"] = found["device"] or storage.device_free()
            if not found["device"]:
                raise InputError("the device does not say what memory is free: set memory.device")
    return found


def fit(work: Workload, device: int | None = None, host: int | None = None) -> Need:
    """The first settings that fit into so many bytes; those that are set stay as they are.

    In order: streams on the device, on the host, on disk; in each, where compensation is what does
    not fit, rematerialised; then batches of half the size, down to one sample. Raises InputError
    that says how much is missing, and for what.
    """
    memory = work.config.memory
    kinds: tuple[storage.Place, ...]
    kinds = ("host", "disk") if backend.is_host() else ("device", "host", "disk")
    least: tuple[int, str] | None = None
    for place in kinds if memory.streams == "auto" else (memory.streams,):
        tries, remat = _batches(work), memory.remat
        if (
            place == "device"
            and device is not None
            and (over := work.both(memory.stream_dtype) - device) > 0
        ):
            least = over, f"{gib(over)} of device memory for the streams alone"
            continue  # whatever the batch: nothing to compile for it
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
    memory, positions = work.config.memory, work.positions
    share = -(-work.config.calibration.count // (work.config.devices or 1))
    batch = transfer.batch_size(share, positions)
    found: list[int | None] = [memory.batch_tokens]
    while memory.batch_tokens is None and batch > 1:
        batch //= 2
        found.append(batch * positions)
    return found


def gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB"
