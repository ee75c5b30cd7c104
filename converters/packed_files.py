"""Packed safetensors files: read by the names, shapes and dtypes of the files they were made from.

The zeros of a sparse tensor are left out, see `converters.packed_codec`. The bytes of every tensor,
and the description of them, have a SHA-256 that is checked before use.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.layout import Entry, file_header, read_header
from converters.packed_codec import check_parts, decode
from converters.packed_forms import (
    DEFLATED,
    FLOATS,
    LEVELS,
    MASK,
    NONZEROS,
    PLAIN,
    Levels,
    Parts,
    Pattern,
    parse_form,
    part_sizes,
)
from converters.packed_masks import inflated, too_small
from converters.rules import ConversionError

SUFFIX = ".packed.safetensors"  # of a packed file, in place of .safetensors
VERSION, PLAIN_MASKS = 2, 1  # version 1 has no deflated bitmasks, and is written if there are none
DESCRIPTION, CHECKSUM = "icp_jax.packed", "icp_jax.packed.sha256"  # keys of the metadata
HEADER = "packed:header"  # the tensor with the header of the file that was packed
AGAIN = "fetch it again, or pack the model again"


def packed_name(name: str) -> str:
    """The name of the packed file for a `.safetensors` file."""
    return name.removesuffix(".safetensors") + SUFFIX


def part_name(name: str, part: str) -> str:
    """The name of a part of a tensor in a packed file; a plain tensor keeps its name."""
    return name if part == PLAIN else f"{name}:{part}"


def digest(data: bytes | np.ndarray) -> str:
    """The SHA-256 of bytes or of a contiguous array."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data).hexdigest()


@dataclass(frozen=True)
class Stored:
    """How a packed file holds a tensor."""

    form: str  # plain, bitmask, or a pattern such as 2:4
    parts: dict[str, Entry]
    digests: dict[str, str]

    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


class PackedFile:
    """One packed file, checked as far as its header tells. Raises ConversionError.

    header, entries: of the file that was packed. stored: its tensors here.
    """

    def __init__(self, path: Path, shard: str):
        self.path = path
        raw, held = file_header(path, shard)
        told = _description(path, raw)
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._checked: set[str] = set()
        try:
            self.header = self._header(held, told["header"])
            self.entries = read_header(shard, self.header)
            if list(told["tensors"]) != list(self.entries):
                raise ValueError("the list of tensors")
            self.stored = stored = {
                name: _stored(name, entry, told["tensors"][name], held)
                for name, entry in self.entries.items()
            }
            if told["version"] == PLAIN_MASKS and any(DEFLATED in s.parts for s in stored.values()):
                raise ValueError("its version")
            used = {part_name(n, p) for n, s in self.stored.items() for p in s.parts}
            if used | {HEADER} != held.keys():
                raise ValueError("the tensors in the file")
        except ConversionError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConversionError(
                f"{path} contradicts its description ({error}): {AGAIN}"
            ) from None

    def _header(self, held: dict[str, Entry], told: str) -> bytes:
        entry = held[HEADER]
        if entry.dtype != np.uint8:
            raise ValueError(HEADER)
        return bytes(self._part(HEADER, entry, told))

    def _part(self, name: str, entry: Entry, told: str) -> np.ndarray:
        """A part `[elements]` as a view of the file. Raises ConversionError if it is damaged."""
        flat = np.frombuffer(self.map, np.uint8, entry.nbytes, entry.start)
        if name not in self._checked:
            if digest(flat) != told:
                raise ConversionError(
                    f"{self.path} is damaged: tensor {name!r} has another checksum; {AGAIN}"
                )
            self._checked.add(name)
        return flat.view(entry.dtype)

    def parts(self, name: str) -> Parts:
        """The parts of a tensor, each `[elements]`, a bitmask inflated.

        Raises ConversionError if one is damaged.
        """
        stored, entry = self.stored[name], self.entries[name]
        parts = {
            part: self._part(part_name(name, part), held, stored.digests[part])
            for part, held in stored.parts.items()
        }
        if stored.form == PLAIN:
            return parts
        try:
            if DEFLATED in parts:
                parts[MASK] = inflated(parts.pop(DEFLATED), -(-size_of(entry) // 8))
            check_parts(parts, stored.form, size_of(entry))
        except ConversionError as error:
            raise self._wrong(name, error) from None
        return parts

    def read(self, name: str) -> np.ndarray:
        """A tensor, exactly as it was packed."""
        entry, form, parts = self.entries[name], self.stored[name].form, self.parts(name)
        if form == PLAIN:
            return parts[PLAIN].reshape(entry.shape)
        try:
            return decode(parts, form, size_of(entry), entry.dtype).reshape(entry.shape)
        except ConversionError as error:
            raise self._wrong(name, error) from None

    def _wrong(self, name: str, error: ConversionError) -> ConversionError:
        return ConversionError(f"{self.path}: tensor {name!r}: {error}; {AGAIN}")


def size_of(entry: Entry) -> int:
    """The number of a tensor's elements."""
    return entry.nbytes // entry.dtype.itemsize


def _description(path: Path, raw: bytes) -> dict[str, Any]:
    """The description in a file's header. Raises ConversionError."""
    metadata = json.loads(raw[8:]).get("__metadata__")
    text = metadata.get(DESCRIPTION) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ConversionError(f"{path} was not written by icp-jax pack: rename it, or {AGAIN}")
    if digest(text.encode("utf-8", "surrogatepass")) != metadata.get(CHECKSUM):
        raise ConversionError(f"{path} is damaged: its header has another checksum; {AGAIN}")
    try:
        told = json.loads(text)
        version = told["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ConversionError(f"{path} has a description that is not JSON: {AGAIN}") from None
    if version not in (PLAIN_MASKS, VERSION):
        raise ConversionError(
            f"{path} has version {version!r} of the format, and this icp-jax reads versions "
            f"{PLAIN_MASKS} and {VERSION}: update icp-jax"
        )
    return told


def _stored(name: str, entry: Entry, told: dict[str, Any], held: dict[str, Entry]) -> Stored:
    """A tensor's parts, their sizes checked. Raises ValueError or KeyError where they disagree."""
    form, digests = told["form"], dict(told["sha256"])
    kind = parse_form(form)
    parts = {part: held[part_name(name, part)] for part in digests}
    size = size_of(entry)
    if form == PLAIN:
        right = {PLAIN: (entry.dtype, entry.shape)}
    else:
        if len(entry.shape) != 2 or (kind is not None and entry.shape[1] % kind[1]):
            raise ValueError(name)
        counts = part_sizes(form, size, _nonzeros(kind, parts))
        if DEFLATED in parts and MASK in counts:
            counts[DEFLATED] = parts[DEFLATED].nbytes
            del counts[MASK]
            if too_small(size, sum(part.nbytes for part in parts.values())):
                raise ValueError(name)
        right = {
            part: (entry.dtype if part in FLOATS else np.dtype(np.uint8), (count,))
            for part, count in counts.items()
        }
    if right != {part: (e.dtype, e.shape) for part, e in parts.items()}:
        raise ValueError(name)
    return Stored(form, parts, digests)


def _nonzeros(kind: Pattern | Levels | None, parts: dict[str, Entry]) -> int:
    """The number of non-zeros, as far as the parts' shapes tell it: to a byte for levels."""
    if isinstance(kind, Levels):
        return parts[LEVELS].nbytes * 8 // kind.bits
    return parts[NONZEROS].shape[0]
