"""Non-zeros as integers of 4 or 8 bits: the form `intB:G` of a packed matrix.

A weight is `scale * (level - zero)`, computed in float32 and rounded to the matrix's dtype, with a
scale and a zero for every G consecutive weights of a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, Shaped, UInt8

from converters.packed_forms import LEVELS, MASK, SCALE, ZERO, Levels, Parts

GROUPS = (128, 64, 32)  # tried after one group a row, the coarsest first
ELEMENTS = 1 << 18  # at a time
PROBE = 16  # groups that show at once whether a matrix lies on grids

Groups = Shaped[np.ndarray, "n g"]
Grids = tuple[Shaped[np.ndarray, "n"], UInt8[np.ndarray, "n"]]  # scales, zeros


def fitting(matrix: Shaped[np.ndarray, "r c"], bits: int) -> tuple[Levels, bool]:
    """(the form of a matrix, whether it is exact: all weights lie on grids of `bits` bits)."""
    columns = matrix.shape[1]
    sizes = [columns, *(g for g in GROUPS if g < columns and columns % g == 0)]
    for size in sizes:
        groups = matrix.reshape(-1, size)
        if all(_solved(part, bits)[1] for part in (groups[:PROBE], *_parts(groups))):
            return Levels(bits, size), True
    return Levels(bits, next((size for size in sizes if size <= GROUPS[0]), columns)), False


def encode_levels(matrix: Shaped[np.ndarray, "r c"], form: Levels, exact: bool) -> Parts:
    """The parts of a matrix. exact: what `fitting` has found; else the weights are rounded."""
    scales, zeros, levels = [], [], []
    for part in _parts(matrix.reshape(-1, form.group)):
        scale, zero = _solved(part, form.bits)[0] if exact else _rounded(part, form.highest)
        steps = np.rint(part.astype(np.float64) / scale.astype(np.float64)[:, None])
        level = np.clip(steps + zero[:, None], 0, form.highest).astype(np.uint8)
        scales.append(scale)
        zeros.append(zero)
        levels.append(level[part != 0])
    return {
        MASK: np.packbits(matrix != 0, bitorder="little"),
        LEVELS: packed_levels(np.concatenate(levels), form.bits),
        SCALE: np.concatenate(scales),
        ZERO: np.concatenate(zeros),
    }


def packed_levels(levels: UInt8[np.ndarray, "n"], bits: int) -> UInt8[np.ndarray, "b"]:
    """Levels as bytes; two a byte for 4 bits, the first in the low half."""
    if bits == 8:
        return levels
    levels = np.pad(levels, (0, len(levels) % 2))
    return levels[0::2] | levels[1::2] << 4


def _parts(groups: Groups) -> Iterator[Groups]:
    step = max(1, ELEMENTS // groups.shape[1])
    return (groups[k : k + step] for k in range(0, len(groups), step))


def _rounded(groups: Groups, highest: int) -> Grids:
    """Grids from the least to the greatest weight of each group, zero included."""
    wide = groups.astype(np.float64)
    low, high = np.minimum(wide.min(axis=1), 0), np.maximum(wide.max(axis=1), 0)
    scale = ((high - low) / highest).astype(groups.dtype)
    scale[scale == 0] = 1
    zero = np.clip(np.rint(-low / scale.astype(np.float64)), 0, highest)
    return scale, zero.astype(np.uint8)


def _solved(groups: Groups, bits: int) -> tuple[Grids, bool]:
    """(grids on which the weights lie exactly, whether there is one for every group).

    The smallest non-zero of a group is k steps of its grid: k is tried from 1 on, and the scale is
    then its k-th part, or a neighbour of that in the dtype.
    """
    highest, bits_of = 2**bits - 1, f"u{groups.dtype.itemsize}"
    wide = groups.astype(np.float64)
    least = np.where(wide == 0, np.inf, np.abs(wide)).min(axis=1)
    scale, zero = np.ones(len(groups), groups.dtype), np.zeros(len(groups), np.uint8)
    left = np.flatnonzero(np.isfinite(least))
    for k in range(1, highest + 1):
        found = np.zeros(len(left), bool)
        middle = (least[left] / k).astype(groups.dtype).view(bits_of)
        for near in (middle, middle + 1, middle - (middle > 0)):
            scales = near.astype(bits_of).view(groups.dtype)
            fits, zeros = _fit(groups[left], wide[left], scales, highest)
            new = fits & ~found
            scale[left[new]], zero[left[new]] = scales[new], zeros[new]
            found |= fits
        left = left[~found]
        if not len(left):
            return (scale, zero), True
    return (scale, zero), not len(left)


def _fit(
    groups: Groups, wide: Float64[np.ndarray, "n g"], scale: Shaped[np.ndarray, "n"], highest: int
) -> tuple[Bool[np.ndarray, "n"], UInt8[np.ndarray, "n"]]:
    """(whether each group's weights are bit for bit on the grid of its scale, its zero)."""
    with np.errstate(all="ignore"):  # a scale may be 0, or far too small
        steps = np.rint(wide / scale.astype(np.float64)[:, None]) + 0.0  # no -0.0
        back = (steps.astype(np.float32) * scale.astype(np.float32)[:, None]).astype(groups.dtype)
    bits_of = f"u{groups.dtype.itemsize}"
    same = (back.view(bits_of) == np.ascontiguousarray(groups).view(bits_of)).all(axis=1)
    low, high = np.minimum(steps.min(axis=1), 0), np.maximum(steps.max(axis=1), 0)
    fits = same & (high - low <= highest)
    return fits, np.where(fits, -low, 0).astype(np.uint8)
