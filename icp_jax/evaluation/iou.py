"""How well prompted masks fit the annotated ones, as the paper measures it.

One prompt an object, three masks from the model; the one whose IoU the model itself rates
highest is compared with the truth. Every figure is a mean over all objects of all images.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from icp_jax.errors import InputError
from icp_jax.phases import Progress
from icp_jax.vision.annotated import Objects, Prompt, load
from icp_jax.vision.predictor import SamPredictor, WholeModel

PROMPTS = 16  # masks at the size of the image that exist at once
log = logging.getLogger("icp_jax")


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
    crowds: int = 0  # annotations that are no objects
    left_out: int = 0  # annotations that cannot be used
    unusable: tuple[str, ...] = ()  # those, each with the reason


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
    limit: at most so many images. seed: of the points that are drawn. Annotations that cannot be
    used are left out, and named in the result. Raises InputError, also where none can be used.
    """
    if prompt not in ("point", "box"):
        raise InputError(f"prompt must be point or box, got {prompt!r}")
    dataset = load(data, limit, seed, prompt)
    predictor = SamPredictor(source, dtype=dtype)
    rows, unusable = [], list(dataset.lost)
    for done, objects in enumerate(dataset.objects, 1):
        unusable += objects.unusable
        if len(objects.masks):
            rows.append(of_image(predictor, objects, prompt))
        progress(-1, "images", done, dataset.images, None)
    if not rows:
        reason = f"none of its {len(unusable)} annotations can be used; the first is {unusable[0]}"
        raise InputError(f"{data}: {reason}")
    if dataset.others:
        log.warning("%s: %s", data, dataset.others)
    means = np.mean(np.concatenate(rows), axis=0)
    iou, accuracy, precision, recall, f1 = map(float, means)
    return Segmentation(
        iou,
        accuracy,
        precision,
        recall,
        f1,
        masks=sum(map(len, rows)),
        images=len(rows),
        prompt=prompt,
        crowds=dataset.crowds,
        left_out=len(unusable),
        unusable=tuple(unusable),
    )


def of_image(predictor: SamPredictor, objects: Objects, prompt: Prompt) -> Float[np.ndarray, "k 5"]:
    """The measures of every object of one image."""
    predictor.set_image(objects.image)
    rows = []
    for start in range(0, len(objects.masks), PROMPTS):
        part = slice(start, start + PROMPTS)
        if prompt == "point":
            found = predictor.predict(objects.points[part, None], best=True)
        else:
            found = predictor.predict(boxes=objects.boxes[part], best=True)
        rows.append(measures(objects.masks[part], found.masks[:, 0]))
    return np.concatenate(rows)
