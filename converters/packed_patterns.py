"""The places of the stored weights of an n:m pattern, as codes of a few bits."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from converters.packed_forms import Pattern
from converters.rules import ConversionError


def masks_of(pattern: Pattern) -> np.ndarray:
    """The places of each code, as the bits of a byte, uint8 `[places]`."""
    n, m = pattern
    return np.array([bits for bits in range(1 << m) if bits.bit_count() == n], np.uint8)


class Tables(NamedTuple):
    """Between the bits of a group and its code."""

    masks: np.ndarray  # code -> the group's bits, lowest first
    ranks: np.ndarray  # bits of n places -> code
    complete: np.ndarray  # bits of at most n places -> the same and the lowest others, n in all


@cache
def tables(pattern: Pattern) -> Tables:
    """The tables of a pattern, for its encoder and its decoder."""
    n, m = pattern
    masks = masks_of(pattern)
    ranks, complete = np.zeros(1 << m, np.uint8), np.zeros(1 << m, np.uint8)
    ranks[masks] = np.arange(len(masks))
    for bits in range(1 << m):
        full = bits
        while full.bit_count() < n:
            full |= ~full & (full + 1)  # sets the lowest bit that is not set
        complete[bits] = full
    return Tables(masks, ranks, complete)


def bytes_of(words: np.ndarray, m: int) -> np.ndarray:
    """The non-zeros of each group as the bits of a byte, lowest first."""
    return np.packbits((words != 0).reshape(-1, m), axis=1, bitorder="little")[:, 0]


def bits_of(groups: np.ndarray, m: int) -> np.ndarray:
    """The bits of each group, as booleans `[groups * m]`."""
    bits = np.unpackbits(groups[:, None], axis=1, count=m, bitorder="little")
    return bits.reshape(-1).view(bool)


def to_words(digits: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Codes as words of `per_word` digits, the first lowest; as bytes, little endian."""
    k = pattern.per_word
    rows = np.pad(digits, (0, -len(digits) % k)).reshape(-1, k)
    out = np.zeros(len(rows), np.uint32)
    for place in reversed(range(k)):
        out *= np.uint32(pattern.places)
        out += rows[:, place]
    return out.astype("<u4", copy=False).view(np.uint8)


def from_words(raw: np.ndarray, pattern: Pattern, size: int) -> np.ndarray:
    """Invert `to_words`: the code of every group, uint8. Raises ConversionError."""
    left, k = np.ascontiguousarray(raw).view("<u4").astype(np.uint32), pattern.per_word
    out = np.empty((len(left), k), np.uint8)
    for place in range(k):
        left, out[:, place] = np.divmod(left, np.uint32(pattern.places))
    groups = size // pattern.m
    digits = out.reshape(-1)
    if left.any() or digits[groups:].any():
        raise ConversionError("a word of its codes is out of range")
    return digits[:groups]
