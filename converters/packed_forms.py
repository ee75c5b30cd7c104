"""The forms of a tensor in a packed file, their parts, and the sizes of these.

`docs/format.md` describes the bytes.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from converters.rules import ConversionError

Parts = dict[str, np.ndarray]

PLAIN, BITMASK = "plain", "bitmask"  # forms; others are a pattern, or integers, see below
MASK, CODES, NONZEROS = "bitmask", "codes", "nonzeros"  # parts of a packed tensor
DEFLATED = "deflated"  # in place of the bitmask, see `converters.packed_masks`
LEVELS, SCALE, ZERO = "levels", "scale", "zero"  # parts of one with integers for non-zeros
FLOATS = (NONZEROS, SCALE)  # parts in the tensor's dtype; the others are bytes
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
