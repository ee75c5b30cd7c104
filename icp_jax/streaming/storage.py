"""Storage of a stream of hidden states: on the device, in host memory, or on disk.

All kinds index samples like a NumPy array: `stream[where]`, `stream[where] = values`.
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
    """The sharding of JAX's default device.

    Every array is committed to it, since a program compiles separately for committed and
    uncommitted arguments.
    """
    return jax.sharding.SingleDeviceSharding(backend.device())


class Samples:
    """Arrays `[...]`, one per sample, in device memory or in pinned host memory.

    Copies between the two are asynchronous, so the next batch transfers during computation.
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
        """Start copying samples to the device; `stack` joins them.

        Stack them only when they are used: the device runs programs in order, so all later ones
        would wait for the copies.
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
    """An uninitialised stream `[N, ...]`.

    folder: of the file for `disk`, which is unnamed and so is always deleted. Host memory is
    pinned unless the device is the host itself.
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
    """Free the cached pages of a stream on disk; the file keeps the data."""
    if isinstance(stream, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        cast(mmap.mmap, stream.base).madvise(mmap.MADV_DONTNEED)


def choose(wanted: str, both: int, device_room: int, host_room: int) -> Place:
    """The place of two streams of `both` bytes: as wanted, or for `auto` the first with room.

    On the CPU, device and host are the same place.
    """
    if wanted == "device" or (wanted == "auto" and both <= device_room):
        return "host" if backend.is_host() else "device"
    if wanted in ("host", "disk"):
        return cast(Place, wanted)
    return "host" if both <= host_room else "disk"


def host_free() -> int:
    """Bytes of memory available to this process, on the machine and in its cgroups.

    Inactive page cache counts as free.
    """
    groups = map(cgroup_free, cgroups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))
    return max(0, min([proc("meminfo", "MemAvailable"), *(x for x in groups if x is not None)]))


def cgroups(own: Path, root: Path) -> Iterator[Path]:
    """The folders of this process's memory cgroups and their parents, for cgroup v1 and v2."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # number:controllers:/path; v2 has no controllers
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, below = root / "memory" if controllers else root, Path(path.lstrip("/"))
        yield from (top / part for part in (below, *below.parents))


def cgroup_free(group: Path) -> int | None:
    """Bytes left in a cgroup; None without a limit."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # the other version, or no limit
            unused = int((group / limit).read_text()) - int((group / used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return unused + int(stat.get(cached, 0))
    return None


def device_free() -> int:
    """Free bytes in the device's memory pool; 0 if unknown. On a CPU, those of the host."""
    if stats := backend.device().memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return host_free() if backend.device().platform == "cpu" else 0


def device_peak() -> int | None:
    """Peak bytes in use in the device's memory pool; None on the CPU, which has no pool."""
    stats = backend.device().memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


def proc(file: str, field: str) -> int:
    """A field of a file in /proc, in bytes; sys.maxsize without such a file or field."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return sys.maxsize
