"""The forms of a sparse tensor in a packed file: a bitmask, or the pattern of every group.

Weights are taken as words of their bits, in row-major order. Only a word of all zeros is left out,
so -0.0 and the payloads of NaN survive. `docs/format.md` describes the bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from converters.rules import ConversionError

Shape = tuple[int, ...]
Parts = dict[str, np.ndarray]

PLAIN, BITMASK = "plain", "bitmask"  # forms; any other is a pattern, such as 2:4
MASK, CODES, NONZEROS = "bitmask", "codes", "nonzeros"  # parts of a packed tensor
LEVELS, SCALE, ZERO = "levels", "scale", "zero"  # parts of one with integers for non-zeros
FLOATS = (NONZEROS, SCALE)  # parts in the tensor's dtype; the others are bytes
GROUPS = (2, 4, 8)  # m of the patterns
CHUNK = 3 << 18  # elements at a time: whole bytes of the bitmask, groups and words of codes
WORD = 1 << 32  # codes are packed into words of 32 bits


class Pattern(NamedTuple):
    """n stored weights in every m consecutive ones."""

    n: int
    m: int

    @property
    def places(self) -> int:
        """The number of places that n weights can take in a group."""
        return math.comb(self.m, self.n)

    @property
    def per_word(self) -> int:
        """Groups whose codes, as digits to the base `places`, fill a word of 32 bits."""
        return next(k for k in range(32, 0, -1) if self.places**k <= WORD)


class Levels(NamedTuple):
    """Non-zeros as integers of 4 or 8 bits, with a scale for every `group` weights of a row."""

    bits: int
    group: int

    @property
    def highest(self) -> int:
        return 2**self.bits - 1

    @property
    def form(self) -> str:
        return f"int{self.bits}:{self.group}"


def words_of(tensor: np.ndarray) -> np.ndarray:
    """The bits of a contiguous tensor as unsigned integers `[size]`, without a copy."""
    return tensor.reshape(-1).view(f"<u{tensor.dtype.itemsize}")


def parse_form(form: str) -> Pattern | Levels | None:
    """The pattern or the integers of a form; None for a plain tensor and a bitmask.

    Raises ConversionError.
    """
    if form in (PLAIN, BITMASK):
        return None
    if found := re.fullmatch(r"int([48]):([1-9][0-9]{0,8})", form):
        return Levels(int(found[1]), int(found[2]))
    found = re.fullmatch(r"([1-7]):([248])", form)
    if found is None or int(found[1]) >= int(found[2]):
        raise ConversionError(f"unknown form {form!r} of a packed tensor: update icp-jax")
    return Pattern(int(found[1]), int(found[2]))


def part_sizes(form: str, size: int, nonzeros: int) -> dict[str, int]:
    """Elements of each part of a tensor of `size` weights: bytes, stored weights, or scales."""
    kind = parse_form(form)
    if kind is None:
        return {MASK: -(-size // 8), NONZEROS: nonzeros}
    if isinstance(kind, Levels):
        groups = size // kind.group
        filled = -(-nonzeros * kind.bits // 8)
        return {MASK: -(-size // 8), LEVELS: filled, SCALE: groups, ZERO: groups}
    groups = size // kind.m
    return {CODES: 4 * -(-groups // kind.per_word), NONZEROS: kind.n * groups}


def packed_bytes(form: str, size: int, nonzeros: int, itemsize: int) -> int:
    """The bytes of a tensor in a form."""
    if form == PLAIN:
        return size * itemsize
    parts = part_sizes(form, size, nonzeros)
    return sum(n * (itemsize if part in FLOATS else 1) for part, n in parts.items())


def smallest(words: np.ndarray, columns: int) -> tuple[str, int]:
    """(the form of fewest bytes, the number of non-zeros). columns: length of a row."""
    nonzeros = int(np.count_nonzero(words))
    forms = [PLAIN, BITMASK]
    for m in GROUPS:
        if columns % m == 0 and 0 < (n := _densest(words, m)) < m:
            forms.append(f"{n}:{m}")
    return min(forms, key=lambda f: packed_bytes(f, len(words), nonzeros, words.itemsize)), nonzeros


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
    mask, kept = [], []
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK]
        mask.append(np.packbits(part != 0, bitorder="little"))
        kept.append(part[part != 0])
    return {MASK: _joined(mask, np.dtype(np.uint8)), NONZEROS: _joined(kept, words.dtype)}


def _encode_pattern(words: np.ndarray, pattern: Pattern) -> Parts:
    _, ranks, complete = _tables(pattern)
    codes, kept = [], []
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK]
        places = complete[_bytes_of(part, pattern.m)]  # n in every group, zeros among them
        codes.append(ranks[places])
        kept.append(part[_bits_of(places, pattern.m)])
    digits = _joined(codes, np.dtype(np.uint8))
    return {CODES: _to_words(digits, pattern), NONZEROS: _joined(kept, words.dtype)}


def decode(parts: Parts, form: str, size: int, dtype: np.dtype) -> np.ndarray:
    """A tensor `[size]` of this dtype from its parts.

    Raises ConversionError for parts that disagree; allocates nothing before the sizes are checked.
    """
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
        masks, digits = masks_of(pattern), _from_words(parts[CODES], pattern, size)
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        if pattern is None:
            raw = parts[MASK][start // 8 : -(-stop // 8)]
            yield start, np.unpackbits(raw, count=stop - start, bitorder="little").view(bool)
        else:
            groups = digits[start // pattern.m : stop // pattern.m]
            yield start, _bits_of(masks[groups], pattern.m)


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


class _Tables(NamedTuple):
    masks: np.ndarray  # code -> the group's bits, lowest first
    ranks: np.ndarray  # bits of n places -> code
    complete: np.ndarray  # bits of at most n places -> the same and the lowest others, n in all


def masks_of(pattern: Pattern) -> np.ndarray:
    """The places of each code, as the bits of a byte, uint8 `[places]`."""
    n, m = pattern
    return np.array([bits for bits in range(1 << m) if bits.bit_count() == n], np.uint8)


@cache
def _tables(pattern: Pattern) -> _Tables:
    n, m = pattern
    masks = masks_of(pattern)
    ranks, complete = np.zeros(1 << m, np.uint8), np.zeros(1 << m, np.uint8)
    ranks[masks] = np.arange(len(masks))
    for bits in range(1 << m):
        full = bits
        while full.bit_count() < n:
            full |= ~full & (full + 1)  # sets the lowest bit that is not set
        complete[bits] = full
    return _Tables(masks, ranks, complete)


def _bytes_of(words: np.ndarray, m: int) -> np.ndarray:
    """The non-zeros of each group as the bits of a byte, lowest first."""
    return np.packbits((words != 0).reshape(-1, m), axis=1, bitorder="little")[:, 0]


def _bits_of(groups: np.ndarray, m: int) -> np.ndarray:
    """The bits of each group, as booleans `[groups * m]`."""
    bits = np.unpackbits(groups[:, None], axis=1, count=m, bitorder="little")
    return bits.reshape(-1).view(bool)


def _to_words(digits: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Codes as words of `per_word` digits, the first lowest; as bytes, little endian."""
    k = pattern.per_word
    rows = np.pad(digits, (0, -len(digits) % k)).reshape(-1, k)
    out = np.zeros(len(rows), np.uint32)
    for place in reversed(range(k)):
        out *= np.uint32(pattern.places)
        out += rows[:, place]
    return out.astype("<u4", copy=False).view(np.uint8)


def _from_words(raw: np.ndarray, pattern: Pattern, size: int) -> np.ndarray:
    """Invert `_to_words`: the code of every group, uint8. Raises ConversionError."""
    left, k = np.ascontiguousarray(raw).view("<u4").astype(np.uint32), pattern.per_word
    out = np.empty((len(left), k), np.uint8)
    for place in range(k):
        left, out[:, place] = np.divmod(left, np.uint32(pattern.places))
    groups = size // pattern.m
    digits = out.reshape(-1)
    if left.any() or digits[groups:].any():
        raise ConversionError("a word of its codes is out of range")
    return digits[:groups]


def _joined(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
