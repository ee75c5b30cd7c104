"""The memory that a run needs with given settings, phase by phase.

Arrays of the pipeline are counted; temporaries are XLA's figures. On CPU, device and host share
one memory.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from icp_jax import backend, phases
from icp_jax.backend import heap
from icp_jax.config import MemoryConfig
from icp_jax.planning import cost
from icp_jax.planning.programs import Programs as Programs
from icp_jax.planning.setting import Setting
from icp_jax.planning.table import TABLE, Entry
from icp_jax.planning.workload import Workload, size
from icp_jax.streaming import storage

# Host memory measured on CPU: bytes of the runtime once programs run (threads, packing buffers,
# LAPACK), and the fraction of freed arrays that the allocator keeps.
RUNTIME, SLACK = 80 << 20, 0.15
PINNED = 2  # upper bound on XLA's overhead of pinned memory, which it allocates by doubling


class Phase(NamedTuple):
    """The memory of one phase, in its worst block."""

    name: str
    device: int  # bytes
    host: int  # bytes


class Need(NamedTuple):
    """The memory of a run. On CPU, `host` is the total and includes `device`."""

    phases: tuple[Phase, ...]
    memory: MemoryConfig  # the settings that this holds for
    streams: int  # bytes of both streams
    base: int  # bytes of the program itself, included in `host`
    disk: int  # bytes of the new checkpoint and of the work folder

    @property
    def device(self) -> int:
        return max(phase.device for phase in self.phases)

    @property
    def host(self) -> int:
        return max(phase.host for phase in self.phases)


def need(work: Workload, memory: MemoryConfig) -> Need:
    """The memory of a run with these settings; `memory.streams` must be a place, not auto."""
    setting, stored = Setting(work, memory), [size(block) for block in work.blocks]
    heap.give_back()
    bare = storage.proc("self/status", "VmRSS")
    at_once = _at_once(setting)
    heap.give_back()
    base = storage.proc("self/status", "VmRSS") + RUNTIME  # includes the compiled programs
    both = work.both(memory.stream_dtype)
    found = []
    for entry in TABLE:
        name, first = entry.phase.name, entry.phase.first is None
        streams = both // (2 if first else 1)  # embed fills only one of them
        of_global = entry.phase is phases.GLOBAL
        if of_global and not work.config.global_pass.epochs:
            continue
        streams = _hidden(setting) if of_global else streams
        device, arrays = at_once[name], _on_host(entry, setting, streams, max(stored))
        arrays += _states(work) if of_global else 0
        if backend.is_host():
            arrays += setting.devices * device
        # before embed, no program is compiled and no array is freed
        host = bare + RUNTIME + arrays if first else base + int(arrays * (1 + SLACK))
        there = device + (streams if memory.streams == "device" else 0)
        found.append(Phase(name, there, host))
    saved = 2 * _states(work) if work.config.global_pass.epochs else 0  # of two epochs
    disk = saved + 2 * sum(stored) + size(work.embed) + work.others
    disk += both if memory.streams == "disk" else 0
    return Need(tuple(found), memory, both, base, disk)


def _hidden(setting: Setting) -> int:
    """Bytes of the hidden states of the global pass: those of all windows before the first and
    after the last block, and the inputs of all blocks in a step."""
    work = setting.work
    batch = work.config.global_pass.batch or 1
    return (2 * setting.samples + len(work.blocks) * batch) * size(work.hidden())


def _states(work: Workload) -> int:
    """Bytes of the blocks in the global pass: float32 params, two moments, two copies as stored."""
    return 12 * sum(leaf.size for leaf in jax.tree.leaves(work.blocks)) + 2 * size(work.blocks)


def _at_once(setting: Setting) -> dict[str, int]:
    """Device memory by phase in the worst block, without the streams."""
    n_blocks, epochs = setting.work.family.n_blocks, cost.epochs(setting.work.config)
    blocks, found = list(setting.blocks()), {}
    for entry in TABLE:
        runs = [setting] if entry.phase.first is None else blocks
        runs = runs if entry.phase.times(n_blocks, epochs) else []
        sums = (count for at in runs for count in entry.device(at))
        found[entry.phase.name] = max(sums, default=0)
    return found


def _on_host(entry: Entry, setting: Setting, streams: int, block: int) -> int:
    """Bytes of a phase's arrays in host memory.

    streams: bytes of the streams. block: stored bytes of the largest block.
    """
    work, place, first = setting.work, setting.memory.streams, entry.phase.first is None
    arrays = setting.samples * size(work.sample)  # samples stay in memory during the run
    if entry.params:
        arrays += size(work.embed) if first else block
    if backend.is_host():
        return arrays + (0 if place == "disk" else streams)
    arrays += PINNED * streams if place == "host" else 0
    arrays += 0 if first else block  # the previous block is written in the background
    if place != "device":
        arrays += 4 * max(setting.batch, setting.gather) * size(setting.one)
    return arrays
