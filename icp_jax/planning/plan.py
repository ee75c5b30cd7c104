"""Plan a run: choose memory settings that fit, and estimate the minimum time.

`icp_jax.planning.memory` has the memory of a run with given settings.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from icp_jax import backend, phases
from icp_jax.config import CalibrationConfig, MemoryConfig, RunConfig, check, parse_bytes
from icp_jax.data import own
from icp_jax.errors import InputError
from icp_jax.planning import cost
from icp_jax.planning.budgets import budgets
from icp_jax.planning.memory import Need, Phase, need
from icp_jax.planning.rates import Rates, measure
from icp_jax.planning.workload import Workload, describe, resolved, workload
from icp_jax.streaming import storage, transfer
from icp_jax.streaming.source import FolderSource


class Plan(NamedTuple):
    """The memory, FLOPs, bytes moved and minimum time of a run."""

    model: str
    device_kind: str
    limits: dict[str, int | None]  # bytes of device and host memory
    need: Need
    flops: dict[str, float]  # of the whole run, by phase
    moved: dict[str, int]  # bytes between host and device in the whole run, by phase
    rates: Rates
    seconds: dict[str, float]  # minimum time at the measured rates, by phase

    def record(self) -> dict[str, Any]:
        """The plan as JSON values; memory in bytes."""
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


def plan(config: RunConfig) -> Plan:
    """Plan the run of a config on this machine, within its memory limits, else the free memory.

    Writes only the compilation cache. Raises InputError if nothing fits.
    """
    config = check(config)
    source = describe(config.model)
    work = workload(source, resolved(config, source))
    budgets(work.family, work.shapes, config.prune, config.quant)
    limits = _limits(config.memory, free=True)
    found = fit(work, **limits)
    rates = measure(work.config.dtype)
    flops = cost.flops(work.family, work.shapes, cost.load(work.config, work.positions))
    moved = cost.moved(work, found.memory)
    kind = jax.local_devices()[0].device_kind
    seconds = rates.seconds(flops, moved)
    return Plan(config.model, kind, limits, found, flops, moved, rates, seconds)


def settle(source: FolderSource, config: RunConfig) -> tuple[RunConfig, Need | None]:
    """Choose the memory settings of a resolved config, including all that rounding depends on.

    On CPU without limits, takes the defaults regardless of the free memory, and plans no need.
    Raises InputError if nothing fits.
    """
    limits, memory = _limits(config.memory, free=not backend.is_host()), config.memory
    planned = fit(workload(source, config), **limits) if any(limits.values()) else None
    if planned is not None:
        memory = planned.memory
    batch = memory.batch_tokens or transfer.batch_tokens()
    memory = dataclasses.replace(memory, batch_tokens=batch, remat=bool(memory.remat))
    return dataclasses.replace(config, memory=memory), planned


def check_room(source: FolderSource, calibration: CalibrationConfig, memory: MemoryConfig) -> None:
    """Raise InputError if a model that writes its own calibration text does not fit into memory."""
    needed = own.memory(source, calibration, calibration.seq_len or 0)
    where = "host" if backend.is_host() else "device"
    limit = _limits(memory, free=True)[where]
    if limit is not None and needed > limit:
        raise InputError(
            f"calibration data {calibration.data} needs the whole model in {where} memory: "
            f"{gib(needed)} of {gib(limit)}; raise memory.{where} or give calibration text"
        )


def _limits(memory: MemoryConfig, *, free: bool) -> dict[str, int | None]:
    """Memory limits in bytes. free: use the free memory if no limit is set."""
    found = {
        "device": parse_bytes("memory.device", memory.device),
        "host": parse_bytes("memory.host", memory.host),
    }
    if free:
        found["host"] = found["host"] or storage.host_free() + storage.proc("self/status", "VmRSS")
        if not backend.is_host():
            found["device"] = found["device"] or storage.device_free()
            if not found["device"]:
                raise InputError("the device does not report its free memory: set memory.device")
    return found


def fit(work: Workload, device: int | None = None, host: int | None = None) -> Need:
    """Find the first memory settings that fit into the limits; settings that are set are kept.

    Tries streams on the device, on the host, then on disk. For each place: the default batch, with
    remat if tuning a block does not fit, then half the batch, down to one sample.
    device, host: limits in bytes. Raises InputError with the smallest shortfall and its phase.
    """
    memory = work.config.memory
    kinds: tuple[storage.Place, ...]
    kinds = ("host", "disk") if backend.is_host() else ("device", "host", "disk")
    least: tuple[int, str] | None = None
    for place in kinds if memory.streams == "auto" else (memory.streams,):
        tries, remat = _batches(work), memory.remat
        over = 0
        if place == "device" and device is not None:
            over = work.both(memory.stream_dtype) - device
        if over > 0:
            least = over, f"{gib(over)} of device memory for the streams alone"
            continue  # no batch size helps
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
            if phase in (phases.COMPENSATE.name, phases.RETUNE.name) and remat is None:
                remat = True
            else:
                tries.pop(0)
    assert least is not None
    raise InputError(
        f"the run does not fit into memory with any stream place and batch: it lacks {least[1]}; "
        "raise the limits or lower calibration.samples"
    )


def _batches(work: Workload) -> list[int | None]:
    """Batch sizes to try: the set one; or the default, then its halves down to one sample."""
    memory, positions = work.config.memory, work.positions
    share = -(-work.config.calibration.count // (work.config.devices or 1))
    batch = transfer.batch_size(share, positions)
    found: list[int | None] = [memory.batch_tokens]
    while memory.batch_tokens is None and batch > 1:
        batch //= 2
        found.append(batch * positions)
    return found


def gib(count: float) -> str:
    """Format a number of bytes in GiB."""
    return f"{count / 2**30:.2f} GiB"
