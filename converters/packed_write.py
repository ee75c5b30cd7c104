"""Write a packed safetensors file, one tensor at a time, and the file it was made from again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.layout import Entry, Layout, Planned, one_file
from converters.packed_codec import bitmask, decode, encode, smallest, words_of
from converters.packed_files import (
    CHECKSUM,
    DESCRIPTION,
    HEADER,
    PLAIN_MASKS,
    VERSION,
    PackedFile,
    digest,
    packed_name,
    part_name,
)
from converters.packed_forms import (
    BITMASK,
    DEFLATED,
    FLOATS,
    MASK,
    NONZEROS,
    PLAIN,
    Levels,
    Parts,
    packed_bytes,
    parse_form,
    part_sizes,
)
from converters.packed_levels import encode_levels, fitting
from converters.packed_masks import deflated
from converters.rules import ConversionError
from converters.safetensors_files import Writer

if TYPE_CHECKING:
    from converters.files import Reader

UNKNOWN = "0" * 64  # in place of a digest that is not known yet


@dataclass(frozen=True)
class Packing:
    """How a tensor is packed. nonzeros: words that are not zero, counted in matrices of floats."""

    form: str
    nonzeros: int
    parts: Planned  # by the names of the parts
    exact: bool = True  # false: unpacking gives rounded weights

    def nbytes(self) -> int:
        """The bytes of all parts."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.parts.values())


def is_matrix(entry: Entry) -> bool:
    """Whether a tensor may be packed: a matrix of floats, with elements."""
    return len(entry.shape) == 2 and entry.dtype.kind in "fV" and entry.nbytes > 0


def plan(entry: Entry, tensor: np.ndarray, bits: int | None = None) -> Packing:
    """The smallest form of a tensor, and its parts. bits: of its non-zeros; None: its own."""
    if not is_matrix(entry):
        return Packing(PLAIN, 0, {PLAIN: (entry.dtype, entry.shape)})
    words = words_of(tensor)
    form, nonzeros = smallest(words, entry.shape[-1])
    if form == PLAIN:
        return Packing(PLAIN, nonzeros, {PLAIN: (entry.dtype, entry.shape)})
    exact = True
    if bits is not None and np.isfinite(tensor).all():
        levels, fits = fitting(tensor, bits)
        kept = int(np.count_nonzero(tensor))  # without -0.0
        counts = (len(words), kept, words.itemsize)
        if packed_bytes(levels.form, *counts) < packed_bytes(form, len(words), nonzeros, counts[2]):
            form, nonzeros, exact = levels.form, kept, fits
    sizes = part_sizes(form, len(words), nonzeros)
    byte: np.dtype = np.dtype(np.uint8)
    parts: Planned = {p: (entry.dtype if p in FLOATS else byte, (n,)) for p, n in sizes.items()}
    packing = Packing(form, nonzeros, parts, exact)
    if MASK in parts:
        mask = bitmask(words if form == BITMASK else tensor.reshape(-1))
        stream = deflated(mask, packing.nbytes() - len(mask))
        if stream is not None:
            del parts[MASK]
            parts[DEFLATED] = (byte, stream.shape)
    return packing


def packed_size(tensor: np.ndarray) -> int:
    """The bytes of a tensor in its smallest form."""
    return plan(Entry("", tensor.dtype, tensor.shape, 0, tensor.nbytes), tensor).nbytes()


def pack_file(
    reader: Reader, shard: str, folder: Path, bits: int | None = None
) -> dict[str, Packing]:
    """Pack one shard of a checkpoint into `folder`; returns how each tensor was packed.

    bits: of the packed matrices' non-zeros, 4 or 8; None: their own. Every packed tensor is
    unpacked again and compared, unless it is rounded. Raises ConversionError.
    """
    entries = {n: e for n, e in reader.layout.entries.items() if e.shard == shard}
    header = np.frombuffer(reader.layout.headers[shard], np.uint8)
    packings = {}
    for name, entry in entries.items():
        packings[name] = plan(entry, reader.read(name), bits)
        reader.forget()
    told: dict[str, Any] = {
        "version": VERSION if any(DEFLATED in p.parts for p in packings.values()) else PLAIN_MASKS,
        "header": digest(header),
        "tensors": {
            name: {"form": packing.form, "sha256": dict.fromkeys(packing.parts, UNKNOWN)}
            for name, packing in packings.items()
        },
    }
    planned: Planned = {HEADER: (header.dtype, header.shape)}
    for name, packing in packings.items():
        for part, what in packing.parts.items():
            if part_name(name, part) in planned or HEADER in entries:
                raise ConversionError(f"tensor {name!r} has a reserved name: rename it")
            planned[part_name(name, part)] = what
    layout = _layout(packed_name(shard), planned, told)
    with Writer(folder, layout) as writer:
        writer.write(HEADER, header)
        for name, packing in packings.items():
            for part, array in _encoded(reader, name, packing).items():
                told["tensors"][name]["sha256"][part] = digest(array)
                writer.write(part_name(name, part), array)
            reader.forget()
        writer.rehead(_layout(packed_name(shard), planned, told))
    return packings


def _encoded(reader: Reader, name: str, packing: Packing) -> Parts:
    """The parts of a tensor, compared with the tensor that they give."""
    tensor, form = reader.read(name), packing.form
    if form == PLAIN:
        return {PLAIN: tensor}
    words, kind = words_of(tensor), parse_form(form)
    if isinstance(kind, Levels):
        parts = encode_levels(tensor, kind, packing.exact)
    else:
        parts = encode(words, form)
        parts[NONZEROS] = parts[NONZEROS].view(tensor.dtype)
    again = decode(parts, form, len(words), tensor.dtype)
    if packing.exact and not np.array_equal(words_of(again), words):
        raise RuntimeError(f"tensor {name!r} does not survive packing as {form}")
    if not packing.exact and not np.isfinite(again.astype(np.float32)).all():
        raise ConversionError(f"tensor {name!r} has values that cannot be rounded to integers")
    if DEFLATED in packing.parts:
        mask = parts.pop(MASK)
        stream = deflated(mask, sum(part.nbytes for part in parts.values()))
        assert stream is not None  # as when it was planned
        parts[DEFLATED] = stream
    return parts


def _layout(name: str, planned: Planned, told: Mapping[str, Any]) -> Layout:
    """The layout of a packed file, with tensors of wide elements first, so that all are aligned."""
    text = json.dumps(told, separators=(",", ":"))
    ordered = dict(sorted(planned.items(), key=lambda item: -item[1][0].itemsize))
    metadata = {DESCRIPTION: text, CHECKSUM: digest(text.encode())}
    return one_file(name, ordered, metadata)


def unpack_file(packed: PackedFile, shard: str, folder: Path) -> None:
    """Write the file that was packed, byte for byte. Raises ConversionError if it is damaged."""
    with Writer(folder, Layout({shard: packed.header}, packed.entries)) as writer:
        for name in packed.entries:
            writer.write(name, packed.read(name))
