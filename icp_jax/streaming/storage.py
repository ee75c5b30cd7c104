"""Where a stream of hidden states lives: on the device, in host memory, or on disk.

All take and give samples as a NumPy array does: `stream[where]`, `stream[where] = values`.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax import backend

Place = Literal["device", "host", "disk"]


def here() -> jax.sharding.SingleDeviceSharding:
    """JAX's default device, said outright.

    A program is compiled again for arguments that are bound to a device and for those that are
    not; so all are, the samples that came from pinned memory among them.
    """
    return jax.sharding.SingleDeviceSharding(backend.device())


class Samples:
    """Arrays `[...]`, one a sample, in a memory of the device's: its own, or pinned host memory.

    A copy between the two is asynchronous, so the batch to come travels while one computes.
    """

    def __init__(self, shape: Sequence[int], dtype: np.dtype, kind: str):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._there, self._here = here().with_memory_kind(kind), here()
        self._parts: list[jax.Array | None] = [None] * len(self)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: slice | np.ndarray) -> jax.Array:
        return stack(self.send(where))

    def send(self, where: slice | np.ndarray) -> list[jax.Array]:
        """Samples on their way to the device; `stack` joins them.

        Not before they are used: a device computes one thing after the other, and what comes
        after a join waits for the copies too.
        """
        chosen = [self._parts[i] for i in np.arange(len(self))[where]]
        return jax.device_put(chosen, self._here)

    def __setitem__(self, where: slice, values: jax.Array) -> None:
        start, stop, _ = where.indices(len(self))
        self._parts[start:stop] = jax.device_put(_unstack(values, stop - start), self._there)


@jax.jit
def stack(parts: list[jax.Array]) -> jax.Array:
    return jnp.stack(parts)


@partial(jax.jit, static_argnums=1)
def _unstack(values: jax.Array, count: int) -> list[jax.Array]:
    return [values[i] for i in range(count)]


Stream = np.ndarray | Samples


def empty(shape: Sequence[int], dtype: str, place: Place, folder: Path | None = None) -> Stream:
    """A stream `[N, ...]` yet to be filled.

    folder: for disk, where its file goes, which has no name there and so cannot stay behind.
    Host memory is pinned where the device is not the host itself.
    """
    kind = np.dtype(dtype)
    if place == "disk":
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * kind.itemsize)
            return np.memmap(file, kind, "w+", shape=tuple(shape))
    if place == "host" and backend.is_host():
        return np.empty(shape, kind)
    return Samples(shape, kind, "device" if place == "device" else "pinned_host")


def forget(stream: Stream) -> None:
    """Give the pages of a stream on disk back to the system; the file keeps what they hold."""
    if isinstance(stream, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        cast(mmap.mmap, stream.base).madvise(mmap.MADV_DONTNEED)


def choose(wanted: str, both: int, device_room: int, host_room: int) -> Place:
    """The place of two streams of `both` bytes: as wanted, or for auto the first with room.

    Where the device is the host itself, device and host are one place.
    """
    if wanted == "device" or (wanted == "auto" and both <= device_room):
        return "host" if backend.is_host() else "device"
    if wanted in ("host", "disk"):
        return cast(Place, wanted)
    return "host" if both <= host_room else "disk"


def host_free() -> int:
    """Bytes of memory that this process may still take: of the machine, or of its cgroups.

    Cached pages of files that nobody has used of late count as free.
    """
    groups = map(cgroup_free, cgroups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))
    return max(0, min([proc("meminfo", "MemAvailable"), *(x for x in groups if x is not None)]))


def cgroups(own: Path, root: Path) -> Iterator[Path]:
    """The folders of this process's memory cgroups, of either version, and of those above them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # number:controllers:/path; of version 2 with no controllers
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, below = root / "memory" if controllers else root, Path(path.lstrip("/"))
        yield from (top / part for part in (below, *below.parents))


def cgroup_free(group: Path) -> int | None:
    """Bytes that a cgroup still allows; None where it says nothing of a limit."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # the other version, or no limit
            found = int((group / limit).read_text()) - int((group / used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return found + int(stat.get(cached, 0))
    return None


def device_free() -> int:
    """Bytes of the device's pool that are free, 0 where that is not known; the host's on a CPU."""
    if stats := backend.device().memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return host_free() if backend.device().platform == "cpu" else 0


def device_peak() -> int | None:
    """The most bytes of the device's pool that were in use; the CPU has none of its own."""
    stats = backend.device().memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


def proc(file: str, field: str) -> int:
    """What a file of /proc says, in bytes; where there is none, more than any machine has."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return sys.maxsize
