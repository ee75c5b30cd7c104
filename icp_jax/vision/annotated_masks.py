"""Validate annotated masks and decode them with pycocotools.

pycocotools does not validate its input: short run lengths leave uninitialized memory in the mask,
a truncated string is read past its end, and a polygon of two points is taken for a box.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from converters.rules import first_line

Size = tuple[int, int]  # height, width
GROUP = 6  # maximum characters per run length, 5 bits each; enough for any image


class Unusable(ValueError):
    """An annotation cannot be used. The message continues a sentence that starts with its name."""


def decode(coder: Any, given: Any, size: Size) -> Bool[np.ndarray, "h w"]:
    """Decode polygons or run lengths (plain or compressed) into a mask of `size`.

    coder: `pycocotools.mask`. Raises Unusable.
    """
    if not given:
        raise Unusable("has no mask")
    code: Any
    if isinstance(given, Mapping):
        code = {"size": list(size), "counts": _runs(given, size).tolist()}
    elif isinstance(given, list):
        code = _polygons(given, size)
    else:
        raise Unusable(f"has a mask that cannot be read: it is a {type(given).__name__}")
    try:
        with warnings.catch_warnings():  # pycocotools uses a deprecated NumPy protocol
            warnings.simplefilter("ignore", DeprecationWarning)
            packed = coder.frPyObjects(code, *size)
            packed = coder.merge(packed) if isinstance(packed, list) else packed
            _check_sum(_unpacked(packed["counts"]), size)
            mask = np.asarray(coder.decode(packed)).astype(bool)
    except Unusable:
        raise
    except Exception as error:  # pycocotools raises unrelated types
        raise Unusable(f"has a mask that cannot be read: {first_line(error)}") from None
    if not mask.any():
        raise Unusable("has an empty mask")
    return mask


def _runs(given: Mapping[str, Any], size: Size) -> np.ndarray:
    """Validated run lengths, int64."""
    told, (h, w) = given.get("size"), size
    if not isinstance(told, list) or len(told) != 2 or any(type(n) is not int for n in told):
        raise Unusable("has run lengths without a mask size")
    if told != [h, w]:
        raise Unusable(f"has a mask of {told[1]} by {told[0]}, but the image is {w} by {h}")
    counts = given.get("counts")
    if isinstance(counts, str | bytes):
        return _check_sum(_unpacked(counts), size)
    try:
        runs = np.asarray(counts)
        whole = runs.ndim == 1 and runs.dtype.kind in "iuf" and bool(np.all(runs == np.trunc(runs)))
    except (TypeError, ValueError):
        whole = False
    if not whole or np.abs(runs).max(initial=0) > h * w:
        raise Unusable("has run lengths that are not integers, or longer than the image")
    return _check_sum(runs.astype(np.int64), size)


def _unpacked(text: str | bytes) -> np.ndarray:
    """Decode COCO's compressed run lengths: 5 bits a character, differences from the fourth on."""
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError:
        raw = b""
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    if np.any((codes < 0) | (codes > 63)) or not len(ends) or ends[-1] != len(codes) - 1:
        raise Unusable("has run lengths that are truncated or contain invalid characters")
    if lengths.max() > GROUP:
        raise Unusable("has run lengths longer than any image")
    starts = ends - lengths + 1
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _check_sum(runs: np.ndarray, size: Size) -> np.ndarray:
    """Return `runs` if they sum to the image's pixels, else raise Unusable."""
    if runs.min(initial=0) < 0:
        raise Unusable("has a negative run length")
    if (total := int(runs.sum())) != size[0] * size[1]:
        raise Unusable(f"has run lengths of {total} pixels, but the image has {size[0] * size[1]}")
    return runs


def _polygons(given: list[Any], size: Size) -> list[list[float]]:
    """Validate one or several polygons: lists x, y, x, y, ... in or near the image."""
    many = given if isinstance(given[0], list | tuple) else [given]
    reach, checked = max(size), []
    for polygon in many:
        try:
            points = np.asarray(polygon, np.float64)
        except (TypeError, ValueError):
            raise Unusable("has a polygon that is not a list of numbers") from None
        if points.ndim != 1:
            raise Unusable("has a polygon that is not a list of numbers")
        if len(points) < 6 or len(points) % 2:
            raise Unusable("has a polygon with fewer than three points or an odd number of values")
        if not np.all((points >= -reach) & (points <= 2 * reach)):  # also rejects NaN
            raise Unusable("has a polygon far outside the image")
        checked.append(points.tolist())
    return checked
