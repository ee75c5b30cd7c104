"""Sparse tensors and the parts that hold them in a packed file, see `converters.packed_forms`.

Weights are taken as words of their bits, in row-major order. Only a word of all zeros is left out,
so -0.0 and the payloads of NaN survive.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from converters.packed_forms import (
    BITMASK,
    CODES,
    LEVELS,
    MASK,
    NONZEROS,
    PLAIN,
    SCALE,
    ZERO,
    Levels,
    Parts,
    Pattern,
    packed_bytes,
    parse_form,
    part_sizes,
)
from converters.packed_patterns import bits_of, bytes_of, from_words, masks_of, tables, to_words
from converters.rules import ConversionError

GROUPS = (2, 4, 8)  # m of the patterns
CHUNK = 3 << 18  # elements at a time: whole bytes of the bitmask, and whole groups


def words_of(tensor: np.ndarray) -> np.ndarray:
    """The bits of a contiguous tensor as unsigned integers `[size]`, without a copy."""
    return tensor.reshape(-1).view(f"<u{tensor.dtype.itemsize}")


def smallest(words: np.ndarray, columns: int) -> tuple[str, int]:
    """(the form of fewest bytes, the number of non-zeros). columns: length of a row."""
    nonzeros = int(np.count_nonzero(words))
    forms = [PLAIN, BITMASK]
    for m in GROUPS:
        if columns % m == 0 and 0 < (n := _densest(words, m)) < m:
            forms.append(f"{n}:{m}")
    return min(forms, key=lambda f: packed_bytes(f, len(words), nonzeros, words.itemsize)), nonzeros


def bitmask(flat: np.ndarray) -> np.ndarray:
    """Which elements of a vector are not zero, as bits, lowest first, uint8 `[⌈size / 8⌉]`."""
    chunks = (flat[start : start + CHUNK] for start in range(0, len(flat), CHUNK))
    return _joined([np.packbits(c != 0, bitorder="little") for c in chunks], np.dtype(np.uint8))


def _densest(words: np.ndarray, m: int) -> int:
    """The maximum number of non-zeros in m consecutive weights."""
    most = 0
    for start in range(0, len(words), CHUNK):
        groups = (words[start : start + CHUNK] != 0).reshape(-1, m)
        most = max(most, int(groups.sum(axis=1, dtype=np.uint8).max(initial=0)))
        if most == m:
            break
    return most


def encode(words: np.ndarray, form: str) -> Parts:
    """The parts of a tensor's words as a bitmask or by a pattern."""
    pattern = parse_form(form)
    if isinstance(pattern, Pattern):
        return _encode_pattern(words, pattern)
    chunks = (words[start : start + CHUNK] for start in range(0, len(words), CHUNK))
    return {
        MASK: bitmask(words),
        NONZEROS: _joined([part[part != 0] for part in chunks], words.dtype),
    }


def _encode_pattern(words: np.ndarray, pattern: Pattern) -> Parts:
    _, ranks, complete = tables(pattern)
    codes, kept = [], []
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK]
        places = complete[bytes_of(part, pattern.m)]  # n in every group, zeros among them
        codes.append(ranks[places])
        kept.append(part[bits_of(places, pattern.m)])
    digits = _joined(codes, np.dtype(np.uint8))
    return {CODES: to_words(digits, pattern), NONZEROS: _joined(kept, words.dtype)}


def check_parts(parts: Parts, form: str, size: int) -> None:
    """Raise ConversionError if the sizes of a tensor's parts disagree. Allocates little."""
    kind = parse_form(form)
    if isinstance(kind, Pattern):
        nonzeros = len(parts.get(NONZEROS, ()))
        whole = size % kind.m == 0
    else:
        mask = parts.get(MASK, np.zeros(0, np.uint8))
        nonzeros = int(np.bitwise_count(mask).sum(dtype=np.int64))
        whole = kind is None or size % kind.group == 0
    lengths = {name: len(part) for name, part in parts.items()}
    if lengths != part_sizes(form, size, nonzeros) or not whole:
        raise ConversionError("its parts have the wrong lengths")
    if MASK in parts and size % 8 and parts[MASK][-1] >> (size % 8):
        raise ConversionError("its bitmask is longer than the tensor")


def decode(parts: Parts, form: str, size: int, dtype: np.dtype) -> np.ndarray:
    """A tensor `[size]` of this dtype from its parts.

    Raises ConversionError for parts that disagree; allocates nothing before the sizes are checked.
    """
    check_parts(parts, form, size)
    kind = parse_form(form)
    if isinstance(kind, Levels):
        return _decode_levels(parts, kind, size, dtype)
    out, at = np.zeros(size, f"<u{dtype.itemsize}"), 0
    for start, bits in _places(parts, kind, size):
        count = int(np.count_nonzero(bits))
        out[start : start + len(bits)][bits] = words_of(parts[NONZEROS][at : at + count])
        at += count
    return out.view(dtype)


def _places(parts: Parts, pattern: Pattern | None, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """(start, which of the elements from there on are stored), a chunk at a time."""
    if pattern is not None:
        masks, digits = masks_of(pattern), from_words(parts[CODES], pattern, size)
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        if pattern is None:
            raw = parts[MASK][start // 8 : -(-stop // 8)]
            yield start, np.unpackbits(raw, count=stop - start, bitorder="little").view(bool)
        else:
            groups = digits[start // pattern.m : stop // pattern.m]
            yield start, bits_of(masks[groups], pattern.m)


def _decode_levels(parts: Parts, kind: Levels, size: int, dtype: np.dtype) -> np.ndarray:
    out, at = np.zeros(size, dtype), 0
    scales = parts[SCALE].astype(np.float32)
    levels = parts[LEVELS]
    if kind.bits == 4:
        levels = np.stack([levels & 15, levels >> 4], axis=1).reshape(-1)
    for start, bits in _places(parts, None, size):
        places = start + np.flatnonzero(bits)
        groups = places // kind.group
        steps = levels[at : at + len(places)].astype(np.float32) - parts[ZERO][groups]
        with np.errstate(over="ignore", invalid="ignore"):  # refused by whoever wants finite ones
            out[places] = (steps * scales[groups]).astype(dtype)
        at += len(places)
    return out


def _joined(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
