"""The metadata of GGUF files, and where their tensors are: one file, or all parts of a model."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.names import foreign, shown
from converters.rules import ConversionError, first_line

PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
SPLIT_COUNT, SPLIT_TENSORS = "split.count", "split.tensors.count"


@dataclass(frozen=True)
class Stored:
    """One tensor in a file. kind: ggml's type; shape: torch's; start, nbytes: its place."""

    file: str
    kind: int
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Gguf:
    """A model in GGUF: its parts by name, the first part's metadata, all tensors by ggml name."""

    files: dict[str, Path]
    metadata: dict[str, Any]
    tensors: dict[str, Stored]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    @property
    def first(self) -> Path:
        return next(iter(self.files.values()))

    def own(self, key: str, default: Any = None) -> Any:
        """The metadata of a key under the architecture's name."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def read_gguf(path: Path) -> Gguf:
    """Read the metadata of a model, given any of its parts. Raises ConversionError.

    The last models read are remembered as long as their files do not change.
    """
    files = _parts(path)
    try:
        stats = [p.stat() for p in files]
    except OSError as error:
        raise ConversionError(f"{path} cannot be read: {first_line(error)}") from None
    return _read(tuple(files), tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats))


def _parts(path: Path) -> list[Path]:
    """All parts of a model in order, from the name of one. Raises ConversionError."""
    named = PART.fullmatch(path.name)
    if named is None:
        return [path]
    stem, count = named[1], int(named[3])
    parts = [path.with_name(f"{stem}-{k:05d}-of-{count:05d}.gguf") for k in range(1, count + 1)]
    for part in parts:
        if not part.is_file():
            raise ConversionError(f"{path} is one of {count} parts, and {part.name} is missing")
    return parts or [path]


@functools.lru_cache(maxsize=4)
def _read(files: tuple[Path, ...], stats: tuple[Any, ...]) -> Gguf:
    metadata: dict[str, Any] = {}
    tensors: dict[str, Stored] = {}
    for k, path in enumerate(files):
        fields, found = _read_file(path)
        metadata = metadata or fields
        count = int(fields.get(SPLIT_COUNT, 1))
        if count != len(files):
            raise ConversionError(
                f"{path} is one of {count} parts: name them NAME-{k + 1:05d}-of-{count:05d}.gguf"
            )
        if both := sorted(tensors.keys() & found.keys()):
            raise ConversionError(f"duplicate tensor {both[0]!r} in {path}")
        tensors |= found
    total = metadata.get(SPLIT_TENSORS, len(tensors))
    if total != len(tensors):
        raise ConversionError(
            f"{files[0]} and its parts hold {len(tensors)} tensors instead of {total}: "
            "fetch them again"
        )
    return Gguf({path.name: path for path in files}, metadata, tensors)


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """(metadata, tensors by name) of one file. Raises ConversionError."""
    if what := foreign(path):
        raise ConversionError(f"{path} {what}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ConversionError(f"{path} is not a GGUF file: fetch it again")
    try:
        read = _checked(path)
        if read.byte_order != "I":
            raise ValueError("its bytes are in another order than this machine's")
        fields = {key: field.contents() for key, field in read.fields.items()}
        tensors = {
            t.name: Stored(
                path.name,
                int(t.tensor_type),
                tuple(int(n) for n in reversed(t.shape.tolist())),
                int(t.data_offset),
                int(t.n_bytes),
            )
            for t in read.tensors
        }
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        reason = shown(first_line(error))
        raise ConversionError(
            f"{path} is truncated, damaged or of a newer format ({reason}): fetch it again"
        ) from None
    return fields, tensors


def _checked(path: Path) -> Any:
    """The package's reader, refusing a file that ends before its content does."""
    from gguf import GGUFReader

    class Checked(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **kwargs: Any) -> Any:
            if offset + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError("it ends too early")
            return super()._get(offset, dtype, count, *args, **kwargs)

    return Checked(path)
