"""Images with the masks, points and boxes that SA-1B and COCO know of their objects."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from converters.rules import first_line
from icp_jax.errors import InputError
from icp_jax.vision.folders import image_files, kind_of, read_json, split_of
from icp_jax.vision.process import load_image

Annotation = Mapping[str, Any]
Point = Callable[[Annotation, np.ndarray], np.ndarray]
Rows = list[tuple[Path, Sequence[Annotation]]]


class Objects(NamedTuple):
    """The objects of one image; coordinates in its pixels, (x, y) from the top left corner."""

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    masks: Bool[np.ndarray, "k h w"]
    points: Float[np.ndarray, "k 2"]
    boxes: Float[np.ndarray, "k 4"]  # left, top, right, bottom


class Dataset(NamedTuple):
    """How many images there are with objects, and one after the other."""

    images: int
    objects: Iterator[Objects]


def load(data: str, limit: int | None = None, seed: int = 0) -> Dataset:
    """Images with objects of `sa1b:DIR` or `coco:DIR`, in the order of the files or of COCO's list.

    limit: at most so many images. Points: SA-1B's own; for COCO a pixel of the mask, drawn with
    (seed, id of the annotation). Objects without a pixel are left out, as are images without
    objects. Raises InputError: pycocotools missing, nothing annotated, masks that do not fit.
    """
    coder = _pycocotools()
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    kind, folder = kind_of(data)
    found = _coco(folder) if kind == "coco" else _sa1b(folder)
    point: Point = partial(_drawn, seed) if kind == "coco" else _stored
    if not found:
        raise InputError(f"{data} has no annotations: there is nothing to measure against")
    found = found[:limit]
    return Dataset(len(found), (_read(coder, path, rows, point) for path, rows in found))


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise InputError("masks need pycocotools to be read: pip install 'icp-jax[coco]'") from None
    return mask


def _coco(folder: Path) -> Rows:
    split = split_of(folder, "val")
    record = read_json(split.annotations)
    by_image: dict[Any, list[Annotation]] = {}
    try:
        for row in record["annotations"]:
            if row.get("segmentation"):
                by_image.setdefault(row["image_id"], []).append(row)
        images = [(split.images / r["file_name"], r["id"]) for r in record["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{split.annotations} is not in COCO's format: {error!r}") from None
    return [(path, by_image[key]) for path, key in images if key in by_image]


def _sa1b(folder: Path) -> Rows:
    found: Rows = []
    for path in image_files(folder):
        beside = path.with_suffix(".json")
        if not beside.is_file():
            raise InputError(f"{path} has no {beside.name} beside it: not an SA-1B directory")
        rows = read_json(beside).get("annotations")
        if not isinstance(rows, list):
            raise InputError(f"{beside} has no list of annotations: not in SA-1B's format")
        if rows:
            found.append((path, rows))
    return found


def _read(
    coder: Any,
    path: Path,
    rows: Sequence[Annotation],
    point: Point,
) -> Objects:
    image = load_image(path)
    masks, points, boxes = [], [], []
    for row in rows:
        mask = decode(coder, path, row, image.shape[:2])
        if not mask.any():
            continue
        try:
            left, top, width, height = (float(v) for v in row["bbox"])
            points.append(point(row, mask))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"{path.name}: annotation {row.get('id')} has no box or point that can be read "
                f"({type(error).__name__}: {error})"
            ) from None
        masks.append(mask)
        boxes.append(_clipped(left, top, width, height, mask.shape))
    if not masks:
        raise InputError(f"{path.name}: every mask is empty")
    return Objects(path.name, image, np.stack(masks), np.stack(points), np.stack(boxes))


def decode(coder: Any, path: Path, row: Annotation, size: tuple[int, ...]) -> np.ndarray:
    """A mask `[h, w]`, bool, of polygons or run lengths. Raises InputError, with the image."""
    what, (h, w) = row.get("segmentation"), size
    where = f"{path.name}: annotation {row.get('id')}"
    if isinstance(what, Mapping) and list(what.get("size", ())) != [h, w]:
        told = " by ".join(str(n) for n in reversed(what.get("size", ())))
        raise InputError(f"{where} has a mask of {told}, the image is {w} by {h}")
    try:
        code = what
        if not (isinstance(what, Mapping) and isinstance(what["counts"], str | bytes)):
            code = coder.frPyObjects(what, h, w)
        code = coder.merge(code) if isinstance(code, list) else code
        with warnings.catch_warnings():  # the extension is behind NumPy's latest protocol
            warnings.simplefilter("ignore", DeprecationWarning)
            return np.asarray(coder.decode(code)).astype(bool)
    except Exception as error:  # the extension's errors share no base
        reason = first_line(error)
        raise InputError(f"{where} has a mask that cannot be read: {reason}") from None


def _clipped(left: float, top: float, width: float, height: float, size: Any) -> np.ndarray:
    """The corners inside the image: annotated boxes reach over the edge by rounding."""
    h, w = size
    corners = np.array([left, top, left + width, top + height])
    return np.clip(corners, 0, np.array([w, h, w, h]))


def _stored(row: Annotation, mask: np.ndarray) -> np.ndarray:
    return np.asarray(row["point_coords"][0], np.float64).reshape(2)


def _drawn(seed: int, row: Annotation, mask: np.ndarray) -> np.ndarray:
    ys, xs = np.nonzero(mask)
    k = np.random.default_rng((seed, int(row["id"]))).integers(len(ys))
    return np.array([xs[k], ys[k]], np.float64)
