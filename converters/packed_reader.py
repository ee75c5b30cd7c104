"""Packed shards as the checkpoint that they were packed from, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from converters import mapped
from converters.layout import Described, Entry, Layout, add_shard
from converters.packed_files import PackedFile, Stored
from converters.packed_forms import Parts


class PackedReader(Described):
    """Reads packed files as the checkpoint they were packed from, one tensor at a time.

    files: the packed files, by the names of those they were packed from. index: the text of the
    checkpoint's index. Raises ConversionError.
    """

    def __init__(self, files: dict[str, Path], index: str | None):
        self.files = files
        self.packed = {shard: PackedFile(path, shard) for shard, path in files.items()}
        entries: dict[str, Entry] = {}
        for shard, file in self.packed.items():
            add_shard(entries, file.entries, shard)
        headers = {shard: file.header for shard, file in self.packed.items()}
        self.layout = Layout(headers, entries, index)

    def _file(self, name: str) -> PackedFile:
        return self.packed[self.layout.entries[name].shard]

    def stored(self, name: str) -> Stored:
        """How a tensor is held."""
        return self._file(name).stored[name]

    def parts(self, name: str) -> Parts:
        """The parts of a tensor, each `[elements]`. Raises ConversionError if one is damaged."""
        return self._file(name).parts(name)

    def read(self, name: str) -> np.ndarray:
        """The tensor, unpacked. Raises ConversionError if it is damaged."""
        return self._file(name).read(name)

    def fetch(self, names: Iterable[str]) -> None:
        """Prefetch these tensors in the background."""
        for name in names:
            for part in self.stored(name).parts.values():
                mapped.fetch(self._file(name).map, part.start, part.nbytes)

    def forget(self) -> None:
        """Free the memory of the files' parts read so far."""
        mapped.forget(file.map for file in self.packed.values())

    def close(self) -> None:
        """Drop the maps; each is unmapped when its last view is gone."""
        self.packed.clear()
