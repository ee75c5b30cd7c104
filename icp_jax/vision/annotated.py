"""Images of SA-1B and COCO with the masks, points and boxes of their objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from icp_jax.errors import InputError
from icp_jax.vision import annotation_lists
from icp_jax.vision.annotated_masks import Size, Unusable, decode
from icp_jax.vision.annotation_lists import Annotated, Row
from icp_jax.vision.folders import kind_of
from icp_jax.vision.images import load_image

Prompt = Literal["point", "box"]
NOWHERE = np.full(4, np.nan)


class Objects(NamedTuple):
    """The objects of one image. Coordinates are pixels, (x, y) from the top left corner.

    Unreadable points are NaN if boxes are the prompts, and the other way round.
    """

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    masks: Bool[np.ndarray, "k h w"]
    points: Float[np.ndarray, "k 2"]
    boxes: Float[np.ndarray, "k 4"]  # left, top, right, bottom
    unusable: tuple[str, ...]  # skipped annotations, each with the reason


class Dataset(NamedTuple):
    """The annotated images of a folder."""

    images: int  # number of images with annotations
    objects: Iterator[Objects]  # one item per image
    crowds: int  # skipped annotations of crowds
    lost: tuple[str, ...]  # annotations without an image, each with the reason
    others: str  # a line about skipped files; empty if none


def load(data: str, limit: int | None = None, seed: int = 0, prompt: Prompt = "point") -> Dataset:
    """Load annotated images of `sa1b:DIR` or `coco:DIR`, in the order of files or of COCO's list.

    limit: maximum number of images. Points are SA-1B's own; for COCO, a pixel of the mask drawn
    with (seed, id of the annotation). Annotations without a usable mask or prompt are skipped.
    Raises InputError without pycocotools, without annotations, or for an unreadable image.
    """
    coder = _pycocotools()
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    kind, folder = kind_of(data)
    listed = annotation_lists.coco(folder) if kind == "coco" else annotation_lists.sa1b(folder)
    found: list[Annotated] = []
    crowds = 0
    for item in listed.images:
        if item.rows and len(found) == limit:
            break
        found += [item] if item.rows else []
        crowds += item.crowds
    if not found:
        but = f" except {crowds} crowds" if crowds else ""
        raise InputError(f"{data} has no annotations{but}: give annotated images")
    reader = _Reader(coder, prompt, seed if kind == "coco" else None)
    objects = (reader.read(item) for item in found)
    return Dataset(len(found), objects, crowds, listed.lost, listed.others)


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise InputError("reading masks needs pycocotools: pip install 'icp-jax[coco]'") from None
    return mask


class _Reader(NamedTuple):
    """Decodes annotations."""

    coder: Any  # pycocotools.mask
    prompt: Prompt
    seed: int | None  # for drawing points; None: use the stored points

    def read(self, item: Annotated) -> Objects:
        """The usable objects of an image. Raises InputError if the image is unreadable."""
        image = _framed(item)
        size = (image.shape[0], image.shape[1])
        kept, unusable = [], []
        for row in item.rows:
            try:
                kept.append(self.object(row, item.size or size, size))
            except Unusable as reason:
                unusable.append(f"{item.path.name}: annotation {row.name} {reason}")
        masks, points, boxes = ([one[k] for one in kept] for k in range(3))
        return Objects(
            item.path.name,
            image,
            np.array(masks, bool).reshape(-1, *size),
            np.array(points, np.float64).reshape(-1, 2),
            np.array(boxes, np.float64).reshape(-1, 4),
            tuple(unusable),
        )

    def object(self, row: Row, told: Size, size: Size) -> tuple[np.ndarray, ...]:
        """(mask, point, box) of one annotation. Raises Unusable."""
        content = row.content
        if not isinstance(content, Mapping):
            raise Unusable("is not a JSON object")
        given = content.get("segmentation")
        if isinstance(given, list) and told != size:
            raise Unusable(f"is for an image of {_by(told)}, but the image is {_by(size)}")
        mask = decode(self.coder, given, size)
        point = (
            _stored(content, size) if self.seed is None else _drawn((self.seed, row.number), mask)
        )
        box = _box(content, size)
        if self.prompt == "point" and np.isnan(point).any():
            raise Unusable("has no point inside the image")
        if self.prompt == "box" and np.isnan(box).any():
            raise Unusable("has no box inside the image")
        return mask, point, box


def _framed(item: Annotated) -> np.ndarray:
    """The image in the orientation of its annotations: upright, unless only the stored one fits."""
    image, told = load_image(item.path), item.size
    if told is None:
        masks = (r.content.get("segmentation") for r in item.rows if isinstance(r.content, Mapping))
        sizes = (m.get("size") for m in masks if isinstance(m, Mapping))
        told = next((tuple(s) for s in sizes if isinstance(s, list)), None)
    if told not in (None, image.shape[:2]):
        stored = load_image(item.path, upright=False)
        image = stored if stored.shape[:2] == told else image
    return image


def _by(size: Size) -> str:
    return f"{size[1]} by {size[0]}"


def _box(content: Mapping[str, Any], size: Size) -> np.ndarray:
    """The box's corners, clipped to the image since rounding may exceed it; NaN if invalid."""
    h, w = size
    left, top, wide, high = _numbers(content.get("bbox"), 4)
    corners = np.clip([left, top, left + wide, top + high], 0, [w, h, w, h])
    return corners if (corners[:2] < corners[2:]).all() else NOWHERE


def _stored(content: Mapping[str, Any], size: Size) -> np.ndarray:
    """SA-1B's first point; NaN if invalid."""
    points = content.get("point_coords")
    point = _numbers(points[0] if isinstance(points, list) and points else None, 2)
    inside = (point >= 0).all() and (point <= size[::-1]).all()
    return point if inside else NOWHERE[:2]


def _numbers(given: Any, count: int) -> np.ndarray:
    """A list of `count` finite numbers as an array; NaN if invalid."""
    usable = isinstance(given, list) and len(given) == count
    usable = usable and all(type(v) in (int, float) for v in given)
    found = np.array(given, np.float64) if usable else NOWHERE[:count]
    return found if np.isfinite(found).all() else NOWHERE[:count]


def _drawn(seed: tuple[int, int], mask: np.ndarray) -> np.ndarray:
    """A random pixel of the mask, (x, y)."""
    ys, xs = np.nonzero(mask)
    k = np.random.default_rng(seed).integers(len(ys))
    return np.array([xs[k], ys[k]], np.float64)
