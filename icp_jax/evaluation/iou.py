"""Segmentation metrics of prompted masks against annotations, as in the paper.

There is one prompt per object. Of the model's three masks, the one with the highest predicted IoU
is compared with the annotation. Each metric is a mean over all objects of all images.
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

PROMPTS = 16  # full-size masks in memory at once
log = logging.getLogger("icp_jax")


class Segmentation(NamedTuple):
    """Means over all objects, each in [0, 1]."""

    iou: float
    pixel_accuracy: float
    precision: float
    recall: float
    f1: float
    masks: int  # number of objects
    images: int
    prompt: str
    crowds: int = 0  # annotations of crowds, not of objects
    left_out: int = 0  # unusable annotations
    unusable: tuple[str, ...] = ()  # each of them, with the reason


def measures(
    truth: Bool[np.ndarray, "k h w"], found: Bool[np.ndarray, "k h w"]
) -> Float[np.ndarray, "k 5"]:
    """IoU, pixel accuracy, precision, recall and F1 of each mask; 0 / 0 counts as 0."""
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
    """Segment each annotated object of `sa1b:DIR` or `coco:DIR` with one prompt, and score it.

    prompt: a point (see `icp_jax.vision.annotated.load`) or the annotated box.
    limit: the largest number of images. seed: of the sampled points. Unusable annotations are
    skipped and listed in the result. Raises InputError, also if no annotation is usable.
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
        reason = f"none of {len(unusable)} annotations is usable; the first: {unusable[0]}"
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
    """The `measures` of each object of one image."""
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
