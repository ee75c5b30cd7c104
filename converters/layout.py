"""Safetensors layouts: read and check headers, and plan new ones."""

from __future__ import annotations

import json
import math
import struct
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from converters.names import foreign
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
Planned = dict[str, tuple[np.dtype, tuple[int, ...]]]  # tensor name -> dtype, shape
SHARD_BYTES = 5 * 10**9  # shard size for a `.bin` source, as in Hugging Face's exports


@dataclass(frozen=True)
class Entry:
    """One tensor in a safetensors file. start: byte offset in the file; nbytes: length."""

    shard: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """The header of each shard, byte for byte, so that an export has identical headers."""

    headers: dict[str, bytes]  # shard file name -> 8-byte length + JSON
    entries: dict[str, Entry]  # tensor name -> its position
    index: str | None = None  # text of model.safetensors.index.json, if there is one
    torch: bool = False  # the only file is a `.pth`, with an empty header


class Described:
    """The names, shapes and dtypes of a reader's layout."""

    layout: Layout

    def names(self) -> list[str]:
        return list(self.layout.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.layout.entries[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self.layout.entries[name].dtype


def add_shard(entries: dict[str, Entry], more: dict[str, Entry], shard: str) -> None:
    """Add the tensors of a shard to those of others. Raises ConversionError for a second one."""
    for name in entries.keys() & more.keys():
        where = f"{entries[name].shard} and {shard}"
        raise ConversionError(f"duplicate tensor {name!r} in {where}")
    entries |= more


def file_header(path: Path, shard: str) -> tuple[bytes, dict[str, Entry]]:
    """A shard's header bytes and tensors, checked against the file's length."""
    size = path.stat().st_size
    if what := foreign(path):
        raise ConversionError(f"{path} {what}")
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > size - 8:
            raise ConversionError(f"{path} is truncated within its header: fetch it again")
        raw = file.read(length)
    entries = read_header(shard, head + raw)
    expected = 8 + length + sum(e.nbytes for e in entries.values())
    if size != expected:
        what = "truncated" if size < expected else "longer than its header says"
        raise ConversionError(
            f"{path} is {what}: {size} bytes instead of {expected}; fetch it again"
        )
    return head + raw, entries


def read_header(shard: str, raw: bytes) -> dict[str, Entry]:
    """The tensors of a shard. raw: its header, with the 8-byte length. Raises ConversionError."""
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
            raise ConversionError(
                f"tensor {name!r} in {shard} overlaps another or leaves a gap: fetch the file again"
            )
        at += entry.nbytes
    return entries


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
            f"(is it quantized?); supported: {', '.join(DTYPES)}"
        )
    dtype = DTYPES[kind]
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ConversionError(f"tensor {name!r} in {shard}: shape and byte count disagree")
    return Entry(shard, dtype, shape, header_bytes + begin, end - begin)


def plan_layout(
    tensors: Planned,
    metadata: dict[str, str],
    shard_bytes: int = SHARD_BYTES,
) -> Layout:
    """Headers for tensors without safetensors files, in shards of at most `shard_bytes`."""
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


def one_file(name: str, tensors: Planned, metadata: dict[str, str]) -> Layout:
    """The layout of all tensors in one file of this name."""
    found = plan_layout(tensors, metadata, sys.maxsize)
    (header,) = found.headers.values()
    return Layout({name: header}, {k: replace(e, shard=name) for k, e in found.entries.items()})


def check_tensor(entry: Entry, name: str, tensor: np.ndarray) -> None:
    """Raise ConversionError if a tensor's shape or dtype differs from the layout."""
    if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
        raise ConversionError(
            f"tensor {name!r} is {tensor.dtype}{list(tensor.shape)}, "
            f"the layout expects {entry.dtype}{list(entry.shape)}"
        )
