"""Validate a user's prompts: points, labels, boxes and masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from icp_jax.errors import InputError

Prompts = dict[str, np.ndarray | None]  # points, labels, boxes, masks, each with a prompt axis
LABELS = {1: "foreground", 0: "background", -1: "not a point"}
DIMS = {"points": 2, "labels": 1, "boxes": 1, "masks": 2}  # axes of one prompt


def read(points: Any, labels: Any, boxes: Any, mask: Any) -> tuple[Prompts, bool]:
    """(prompts with a prompt axis, whether they were given with one). Raises InputError.

    Points without labels become foreground.
    """
    if points is None and labels is not None:
        raise InputError("labels need points: give points, or leave labels out")
    given = {
        "points": _numbers("points", points, 2),
        "labels": _numbers("labels", labels, 1),
        "boxes": _numbers("boxes", boxes, 1),
        "masks": _numbers("mask", mask, 2),
    }
    several = {k: a.ndim > DIMS[k] for k, a in given.items() if a is not None}
    if len(set(several.values())) > 1:
        raise InputError("give points, labels, boxes and mask all with a prompt axis, or none")
    ready = {k: None if a is None else a if several[k] else a[None] for k, a in given.items()}
    if ready["points"] is not None and ready["labels"] is None:
        ready["labels"] = np.ones(ready["points"].shape[:2], np.float64)
    return ready, any(several.values())


def check(given: Prompts, image: tuple[int, int], side: int) -> int:
    """Validate shapes and values; returns the number of prompts. Raises InputError.

    image: (height, width). side: side of the model's mask logits.
    """
    points, labels, boxes, masks = (given[k] for k in ("points", "labels", "boxes", "masks"))
    h, w = image
    counts = {len(a) for a in given.values() if a is not None}
    if len(counts) > 1:
        raise InputError("points, labels, boxes and mask differ in the number of prompts")
    if points is not None and labels is not None:
        if points.shape[2] != 2 or not points.shape[1]:
            raise InputError(f"points must be [n, 2] or [p, n, 2], got {list(points.shape)}")
        if labels.shape != points.shape[:2]:
            raise InputError(
                f"{labels.shape[1]} labels for {points.shape[1]} points: give one each"
            )
        if not np.isin(labels, list(LABELS)).all():
            told = ", ".join(f"{k} {what}" for k, what in LABELS.items())
            raise InputError(f"labels must be {told}")
        for x, y in points[labels >= 0]:
            if not (0 <= x <= w and 0 <= y <= h):
                raise InputError(f"point ({x:g}, {y:g}) is outside the image of {w} by {h}")
    if boxes is not None:
        if boxes.shape[1] != 4:
            raise InputError(f"boxes must be [4] or [p, 4], got {list(boxes.shape)}")
        for box in boxes:
            left, top, right, bottom = box
            if not (0 <= left < right <= w and 0 <= top < bottom <= h):
                told = ", ".join(f"{v:g}" for v in box)
                raise InputError(f"box ({told}) is empty or outside the image of {w} by {h}")
    if masks is not None and masks.shape[1:] != (side, side):
        size = " by ".join(str(n) for n in masks.shape[1:])
        raise InputError(f"mask must be logits of {side} by {side} for this model, got {size}")
    count = counts.pop() if counts else 1
    if not count:
        raise InputError("the prompt axis is empty: give at least one prompt")
    return count


def _numbers(name: str, value: Any, dims: int) -> np.ndarray | None:
    """`value` as float64 with `dims` or `dims + 1` axes. Raises InputError."""
    if value is None:
        return None
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be numbers in a rectangular array") from None
    if array.ndim not in (dims, dims + 1):
        raise InputError(f"{name} must have {dims} or {dims + 1} axes, got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be finite numbers, got NaN or infinity")
    return array
