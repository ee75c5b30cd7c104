"""Safetensors files, one tensor at a time.

Reading: shards are memory-mapped. Writing: the output has the layout of the source (same shards,
names, order and metadata), and tensors are written to their places as they finish.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from converters.names import INDEX, SAFETENSORS, create, foreign, shards, shown
from converters.rules import ConversionError

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
SHARD_BYTES = 5 * 10**9  # what a `.bin` source is cut into, as Hugging Face does


@dataclass(frozen=True)
class Entry:
    """One tensor in a safetensors file. start: byte offset in the file; nbytes: its length."""

    shard: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """The header of every shard, byte for byte, so that an equal file can be written again."""

    headers: dict[str, bytes]  # shard file name -> 8-byte length + JSON
    entries: dict[str, Entry]  # tensor name -> where it lies
    index: str | None = None  # text of model.safetensors.index.json, where there is one
    torch: bool = False  # the one file of `headers` is a `.pth`, and its header is empty


def _read_header(path: Path, shard: str) -> tuple[bytes, dict[str, Entry]]:
    """A shard's header bytes and its tensors, checked against the file's length."""
    size = path.stat().st_size
    if what := foreign(path):
        raise ConversionError(f"{path} {what}")
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > size - 8:
            raise ConversionError(f"{path} is truncated: its header does not fit the file")
        raw = file.read(length)
    entries = read_header(shard, head + raw)
    expected = 8 + length + sum(e.nbytes for e in entries.values())
    if size != expected:
        what = "truncated" if size < expected else "longer than its header says"
        raise ConversionError(f"{path} is {what}: {size} bytes, the header says {expected}")
    return head + raw, entries


def read_header(shard: str, raw: bytes) -> dict[str, Entry]:
    """The tensors of a shard whose header, length and all, is `raw`. Raises ConversionError."""
    try:
        header = json.loads(raw[8:])
        if len(raw) != 8 + struct.unpack("<Q", raw[:8])[0] or not isinstance(header, dict):
            raise ValueError
    except (ValueError, struct.error, RecursionError):
        raise ConversionError(f"{shard} is not a safetensors file: unreadable header") from None
    header.pop("__metadata__", None)
    entries = {name: _entry(shard, name, entry, len(raw)) for name, entry in header.items()}
    at = len(raw)
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start != at:
            raise ConversionError(f"tensor {name!r} in {shard} overlaps another, or leaves a gap")
        at += entry.nbytes
    return entries


class SafetensorsReader:
    """Memory-mapped safetensors shards."""

    def __init__(self, files: dict[str, Path], index: str | None):
        headers: dict[str, bytes] = {}
        entries: dict[str, Entry] = {}
        self.files = files
        self._maps: dict[str, mmap.mmap] = {}
        for shard, path in files.items():
            headers[shard], found = _read_header(path, shard)
            for name in entries.keys() & found.keys():
                where = f"{entries[name].shard} and {shard}"
                raise ConversionError(f"duplicate tensor {name!r} in {where}")
            entries |= found
        for shard, path in files.items():
            with path.open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.layout = Layout(headers, entries, index)

    def names(self) -> list[str]:
        return list(self.layout.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.layout.entries[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self.layout.entries[name].dtype

    def read(self, name: str) -> np.ndarray:
        """The tensor as a read-only view of the mapped file: no bytes move until it is used."""
        e = self.layout.entries[name]
        count = int(np.prod(e.shape, dtype=np.int64))
        flat = np.frombuffer(self._maps[e.shard], e.dtype, count, e.start)
        return flat.reshape(e.shape)

    def fetch(self, names: Iterable[str]) -> None:
        """Ask the system to read these tensors ahead; returns at once."""
        for name in names:
            e = self.layout.entries[name]
            start = e.start // mmap.PAGESIZE * mmap.PAGESIZE
            if e.nbytes and hasattr(mmap, "MADV_WILLNEED"):
                self._maps[e.shard].madvise(mmap.MADV_WILLNEED, start, e.start + e.nbytes - start)

    def forget(self) -> None:
        """Give back the memory of what was read; views stay good, and are read again if used."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for pages in self._maps.values():
                pages.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Forget the maps; the system unmaps each when its last view is gone."""
        self._maps.clear()


def _entry(shard: str, name: str, raw: dict[str, Any], header_bytes: int) -> Entry:
    try:
        kind, shape = str(raw["dtype"]), tuple(map(int, raw["shape"]))
        begin, end = map(int, raw["data_offsets"])
        if min(begin, *shape, 0) < 0:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ConversionError(f"tensor {name!r} in {shard}: its header is incomplete") from None
    if kind not in DTYPES:
        raise ConversionError(
            f"tensor {name!r} has dtype {kind}, which is not supported "
            f"(already quantized?); supported: {', '.join(DTYPES)}"
        )
    dtype = DTYPES[kind]
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ConversionError(f"tensor {name!r} in {shard}: shape and byte count disagree")
    return Entry(shard, dtype, shape, header_bytes + begin, end - begin)


def plan_layout(
    tensors: dict[str, tuple[np.dtype, tuple[int, ...]]],
    metadata: dict[str, str],
    shard_bytes: int = SHARD_BYTES,
) -> Layout:
    """Headers for tensors that have no safetensors files yet, cut into shards of `shard_bytes`."""
    groups: list[dict[str, tuple[np.dtype, tuple[int, ...], int]]] = [{}]
    filled = 0
    for name, (dtype, shape) in tensors.items():
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if groups[-1] and filled + nbytes > shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = (dtype, shape, nbytes)
        filled += nbytes
    headers: dict[str, bytes] = {}
    entries: dict[str, Entry] = {}
    weight_map: dict[str, str] = {}
    for k, group in enumerate(groups):
        shard = "model.safetensors"
        if len(groups) > 1:
            shard = f"model-{k + 1:05d}-of-{len(groups):05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": metadata}
        at = 0
        for name, (dtype, shape, nbytes) in group.items():
            header[name] = {
                "dtype": DTYPE_NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [at, at + nbytes],
            }
            at += nbytes
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        headers[shard] = struct.pack("<Q", len(raw)) + raw
        for name in group:
            entries[name] = _entry(shard, name, header[name], len(headers[shard]))
            weight_map[name] = shard
    if len(groups) == 1:
        return Layout(headers, entries)
    total = sum(e.nbytes for e in entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return Layout(headers, entries, json.dumps(index, indent=2) + "\n")


def right_index(layout: Layout) -> str | None:
    """The index of a layout: the source's text, unless it lists other tensors, or other bytes.

    Raises ConversionError for a text that is no index.
    """
    if layout.index is None:
        return None
    index = read_index(layout.index, INDEX)
    total = sum(e.nbytes for e in layout.entries.values())
    weight_map = {name: entry.shard for name, entry in layout.entries.items()}
    told = index.get("metadata")
    metadata = told if isinstance(told, dict) else {}
    if index["weight_map"] == weight_map and metadata.get("total_size") == total:
        return layout.index
    index |= {"metadata": {**metadata, "total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2) + "\n"


def read_index(text: str, origin: object) -> dict[str, Any]:
    """A checkpoint's index, whose `weight_map` is a dict. Raises ConversionError."""
    try:
        index = json.loads(text.removeprefix("\ufeff"))
        if not isinstance(index["weight_map"], dict):
            raise TypeError("weight_map is no object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConversionError(f"{origin} is not a checkpoint index: {shown(str(error))}") from None
    return index


class Writer:
    """Safetensors shards of a given layout in `folder`, filled tensor by tensor, in any order.

    A context manager: left well it is closed, left with an error abandoned. Raises
    ConversionError for a layout whose names lead out of the folder.
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
        """Write one tensor, in torch's order. Shape and dtype must be the layout's."""
        e = self.layout.entries[name]
        check_tensor(e, name, tensor)
        file = self._files[e.shard]
        file.seek(e.start)
        file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Flush to disk and close; a full disk raises OSError here at the latest."""
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Close without caring for the contents."""
        for file in self._files.values():
            try:
                file.close()
            except OSError:  # a full disk again, on the flush: the folder is about to go
                continue


def check_tensor(entry: Entry, name: str, tensor: np.ndarray) -> None:
    """Raises ConversionError where a tensor's shape or dtype is not the layout's."""
    if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
        raise ConversionError(
            f"tensor {name!r}: {tensor.dtype}{list(tensor.shape)} does not fit "
            f"{entry.dtype}{list(entry.shape)}"
        )
