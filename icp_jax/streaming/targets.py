"""The dense stream after each block, kept on disk for runs that share it.

The targets of every block are those of the unpruned model: runs with the same samples, dtypes and
batches have the same ones, bit for bit.
"""

from __future__ import annotations

import logging
import os
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from icp_jax.streaming.storage import Samples, Stream, forget

Part = tuple[slice, int, int]  # samples, place in the file, bytes
CHUNK = 1 << 24  # bytes that are read or written at once
log = logging.getLogger("icp_jax")


class Targets:
    """The streams in an unnamed file, which is always deleted, each with a checksum.

    Nothing is kept if all blocks would take more than half of the free disk. folder: of the file.
    """

    def __init__(self, folder: Path, blocks: int):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed with this object
        weakref.finalize(self, self._file.close)
        self.blocks, self.full = blocks, False
        self.sums: dict[int, int] = {}  # block -> checksum

    def read(self, t: int, stream: Stream) -> bool:
        """Set the stream to what it is after block t. False, and no change, if that is not here."""
        if t not in self.sums:
            return False
        parts = list(self._parts(t, stream))
        if self._checksum(parts) != self.sums[t]:
            log.warning(f"the dense stream of block {t} on disk is damaged: it is computed again")
            del self.sums[t]
            return False
        for where, at, size in parts:
            values = np.frombuffer(os.pread(self._file.fileno(), size, at), stream.dtype)
            values = values.reshape(where.stop - where.start, *stream.shape[1:])
            if isinstance(stream, Samples):
                stream[where] = jnp.asarray(values)
            else:
                stream[where] = values
                forget(stream)
        return True

    def _checksum(self, parts: list[Part]) -> int | None:
        """Of what is on disk; None if that cannot be read."""
        found = 0
        try:
            for _, at, size in parts:
                found = zlib.crc32(os.pread(self._file.fileno(), size, at), found)
        except OSError:
            return None
        return found

    def write(self, t: int, stream: Stream) -> None:
        """Keep the stream after block t, if there is room."""
        if self.full or (not self.sums and not self._room(stream)):
            return
        found = 0
        try:
            for where, at, _ in self._parts(t, stream):
                part = np.ascontiguousarray(stream[where]).tobytes()
                found = zlib.crc32(part, found)
                if os.pwrite(self._file.fileno(), part, at) < len(part):
                    raise OSError("the disk is full")
                forget(stream)
        except OSError as error:  # such as a full disk: the run goes on without
            self._none(str(error))
            return
        self.sums[t] = found

    def _room(self, stream: Stream) -> bool:
        needed, disk = self.blocks * _size(stream), os.fstatvfs(self._file.fileno())
        if needed > disk.f_bavail * disk.f_frsize // 2:
            self._none(f"they take {needed / 2**30:.1f} GiB, more than half of the free disk")
        return not self.full

    def _none(self, why: str) -> None:
        self.full = True
        self.sums.clear()
        self._file.truncate(0)
        log.warning(f"the targets of the blocks are computed anew for every point: {why}")

    def _parts(self, t: int, stream: Stream) -> Iterator[Part]:
        """Parts of about CHUNK bytes."""
        one, start = _size(stream) // len(stream), t * _size(stream)
        step = max(1, CHUNK // one)
        for k in range(0, len(stream), step):
            where = slice(k, min(k + step, len(stream)))
            yield where, start + k * one, (where.stop - k) * one


def _size(stream: Stream) -> int:
    return int(np.prod(stream.shape)) * stream.dtype.itemsize
