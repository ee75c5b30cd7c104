"""Safetensors files, one tensor at a time.

Readers memory-map the shards. Writers keep the layout of the source (shards, names, order and
metadata) and write tensors in any order.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from converters import mapped
from converters.index import right_index
from converters.layout import Described, Entry, Layout, add_shard, check_tensor, file_header
from converters.names import INDEX, SAFETENSORS, create, shards


class SafetensorsReader(Described):
    """Memory-mapped safetensors shards."""

    def __init__(self, files: dict[str, Path], index: str | None):
        headers: dict[str, bytes] = {}
        entries: dict[str, Entry] = {}
        self.files = files
        self._maps: dict[str, mmap.mmap] = {}
        for shard, path in files.items():
            headers[shard], tensors = file_header(path, shard)
            add_shard(entries, tensors, shard)
        for shard, path in files.items():
            with path.open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.layout = Layout(headers, entries, index)

    def read(self, name: str) -> np.ndarray:
        """The tensor as a read-only view of the mapped file; bytes are read on use."""
        e = self.layout.entries[name]
        count = int(np.prod(e.shape, dtype=np.int64))
        flat = np.frombuffer(self._maps[e.shard], e.dtype, count, e.start)
        return flat.reshape(e.shape)

    def fetch(self, names: Iterable[str]) -> None:
        """Prefetch these tensors in the background."""
        for name in names:
            e = self.layout.entries[name]
            mapped.fetch(self._maps[e.shard], e.start, e.nbytes)

    def forget(self) -> None:
        """Free the memory of tensors read so far; views stay valid and are reread on use."""
        mapped.forget(self._maps.values())

    def close(self) -> None:
        """Drop the maps; each is unmapped when its last view is gone."""
        self._maps.clear()


class Writer:
    """Writes safetensors shards of a given layout into `folder`, tensor by tensor in any order.

    As a context manager it closes on success and abandons on an error. Raises ConversionError if
    a name in the layout leads out of the folder.
    """

    def __init__(self, folder: str | Path, layout: Layout):
        self.folder, self.layout = Path(folder), layout
        self._files: dict[str, BinaryIO] = {}
        shards(self.folder, layout.headers, SAFETENSORS, "the layout")
        index = right_index(layout)
        try:
            for shard, header in layout.headers.items():
                self._files[shard] = file = create(self.folder, shard)
                sizes = (e.nbytes for e in layout.entries.values() if e.shard == shard)
                file.write(header)
                file.truncate(len(header) + sum(sizes))
            if index is not None:
                with create(self.folder, INDEX) as file:
                    file.write(index.encode())
        except BaseException:
            self.abandon()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close() if error is None else self.abandon()

    def write(self, name: str, tensor: np.ndarray) -> None:
        """Write one tensor, in torch's order. Shape and dtype must match the layout."""
        e = self.layout.entries[name]
        check_tensor(e, name, tensor)
        file = self._files[e.shard]
        file.seek(e.start)
        file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)

    def rehead(self, layout: Layout) -> None:
        """Replace the headers by those of a layout that is alike but for its metadata."""
        for shard, header in layout.headers.items():
            if len(header) != len(self.layout.headers[shard]):
                raise ValueError(f"{shard}: the new header has another length")
            self._files[shard].seek(0)
            self._files[shard].write(header)

    def close(self) -> None:
        """Flush to disk and close. Raises OSError if the disk is full."""
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Close the files, whatever their contents."""
        for file in self._files.values():
            try:
                file.close()
            except OSError:  # the flush may fail on a full disk; the folder is deleted anyway
                continue
