"""The memory that a run needs, phase by phase, with given settings.

The arrays that the pipeline holds are counted; what the programs need beside them is asked of
XLA. Where the device is the host itself, one memory holds both.
"""

from __future__ import annotations

from typing import NamedTuple

from icp_jax import backend
from icp_jax.backend import heap
from icp_jax.config import MemoryConfig
from icp_jax.planning import cost
from icp_jax.planning.programs import Programs as Programs
from icp_jax.planning.setting import Setting
from icp_jax.planning.table import TABLE, Entry
from icp_jax.planning.workload import Workload, size
from icp_jax.streaming import storage

# Of the host, seen on the CPU: what the runtime takes once programs run (threads, packing
# buffers, LAPACK), and the share that an allocator keeps of the arrays that are freed.
RUNTIME, SLACK = 80 << 20, 0.15
PINNED = 2  # XLA takes pinned memory from the system in ever doubled pieces: at most so much


class Phase(NamedTuple):
    """One phase. device, host: bytes at once, in the worst block."""

    name: str
    device: int
    host: int


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


def need(work: Workload, memory: MemoryConfig) -> Need:
    """Bytes by phase with these settings; `memory.streams` must be a place, not auto."""
    setting, stored = Setting(work, memory), [size(block) for block in work.blocks]
    heap.give_back()
    bare = storage.proc("self/status", "VmRSS")
    at_once = _at_once(setting)
    heap.give_back()
    base = storage.proc("self/status", "VmRSS") + RUNTIME  # with the programs, which are kept
    both = work.both(memory.stream_dtype)
    found = []
    for entry in TABLE:
        name, first = entry.phase.name, entry.phase.first is None
        streams = both // (2 if first else 1)  # one is still empty
        device, arrays = at_once[name], _on_host(entry, setting, streams, max(stored))
        if backend.is_host():
            arrays += setting.devices * device
        # nothing was compiled or freed before the first
        host = bare + RUNTIME + arrays if first else base + int(arrays * (1 + SLACK))
        there = device + (streams if memory.streams == "device" else 0)
        found.append(Phase(name, there, host))
    disk = 2 * sum(stored) + size(work.embed) + work.others
    disk += both if memory.streams == "disk" else 0
    return Need(tuple(found), memory, both, base, disk)


def _at_once(setting: Setting) -> dict[str, int]:
    """Bytes at once on the device by phase, in the worst block; the streams left out."""
    n_blocks, epochs = setting.work.family.n_blocks, cost.epochs(setting.work.config)
    blocks, found = list(setting.blocks()), {}
    for entry in TABLE:
        runs = [setting] if entry.phase.first is None else blocks
        runs = runs if entry.phase.times(n_blocks, epochs) else []
        sums = (count for at in runs for count in entry.device(at))
        found[entry.phase.name] = max(sums, default=0)
    return found


def _on_host(entry: Entry, setting: Setting, streams: int, block: int) -> int:
    """Bytes of the arrays there, but for those that a phase holds on the device.

    streams: bytes of what there is of both; block: stored bytes of the largest.
    """
    work, place, first = setting.work, setting.memory.streams, entry.phase.first is None
    arrays = setting.samples * size(work.sample)  # the run keeps them: of images, more than all
    if entry.params:
        arrays += size(work.embed) if first else block
    if backend.is_host():
        return arrays + (0 if place == "disk" else streams)
    arrays += PINNED * streams if place == "host" else 0
    arrays += 0 if first else block  # the block before is still being written
    if place != "device":
        arrays += 4 * max(setting.batch, setting.gather) * size(setting.one)
    return arrays
