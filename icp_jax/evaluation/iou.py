"""How well prompted masks fit the annotated ones, as the paper measures it.

One prompt an object, three masks from the model; the one whose IoU the model itself rates
highest is compared with the truth. Every figure is a mean over all objects of all images.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from icp_jax.errors import InputError
from icp_jax.pipeline import Progress
from icp_jax.vision.annotated import Objects, load
from icp_jax.vision.predictor import SamPredictor

Prompt = Literal["point", "box"]
PROMPTS = 16  # masks at the size of the image that exist at once


class Segmentation(NamedTuple):
    """Means over all masks, each in [0, 1]."""

    iou: float
    pixel_accuracy: float
    precision: float
    recall: float
    f1: float
    masks: int  # how many objects
    images: int
    prompt: str


@runtime_checkable
class WholeModel(Protocol):
    """A source of a whole model: a folder, or a tree in memory."""

    @property
    def config(self) -> dict[str, Any]: ...
    def tree(self) -> dict[str, Any]: ...


def measures(
    truth: Bool[np.ndarray, "k h w"], found: Bool[np.ndarray, "k h w"]
) -> Float[np.ndarray, "k 5"]:
    """IoU, pixel accuracy, precision, recall and F1 of every mask; 0 where nothing is found."""
    axes = (1, 2)
    both = np.sum(truth & found, axes, dtype=np.float64)
    true, given = np.sum(truth, axes), np.sum(found, axes)
    total = truth.shape[1] * truth.shape[2]
    either = true + given - both
    columns = (
        both / np.maximum(either, 1),
        (total - either + both) / total,
        both / np.maximum(given, 1),
        both / np.maximum(true, 1),
        2 * both / np.maximum(true + given, 1),
    )
    return np.stack(columns, axis=1)


def segmentation(
    source: WholeModel,
    data: str,
    *,
    prompt: Prompt = "point",
    limit: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    progress: Progress = lambda block, phase, done, total, loss: None,
) -> Segmentation:
    """Masks for every annotated object of `sa1b:DIR` or `coco:DIR`, one prompt each.

    prompt: a point (see `icp_jax.vision.annotated.load` for which) or the annotated box.
    limit: at most so many images. seed: of the points that are drawn. Raises InputError.
    """
    if prompt not in ("point", "box"):
        raise InputError(f"prompt must be point or box, got {prompt!r}")
    dataset = load(data, limit, seed)
    predictor = SamPredictor(source.config, source.tree(), dtype)
    rows, images = [], 0
    for objects in dataset.objects:
        rows.append(of_image(predictor, objects, prompt))
        images += 1
        progress(-1, "images", images, dataset.images, None)
    means = np.mean(np.concatenate(rows), axis=0)
    iou, accuracy, precision, recall, f1 = map(float, means)
    return Segmentation(iou, accuracy, precision, recall, f1, sum(map(len, rows)), images, prompt)


def of_image(predictor: SamPredictor, objects: Objects, prompt: Prompt) -> Float[np.ndarray, "k 5"]:
    """The measures of every object of one image. Raises InputError, with the image's name."""
    predictor.set_image(objects.image)
    rows = []
    for start in range(0, len(objects.masks), PROMPTS):
        part = slice(start, start + PROMPTS)
        points, boxes = objects.points[part, None], objects.boxes[part]
        try:
            if prompt == "point":
                found = predictor.predict(points, best=True)
            else:
                found = predictor.predict(boxes=boxes, best=True)
        except InputError as error:
            raise InputError(f"{objects.name}: {error}") from None
        rows.append(measures(objects.masks[part], found.masks[:, 0]))
    return np.concatenate(rows)
