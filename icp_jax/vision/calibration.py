"""Draw calibration images from a folder and preprocess them."""

from __future__ import annotations

import logging

import numpy as np
from jaxtyping import Float

from icp_jax.errors import InputError
from icp_jax.vision.folders import Listed, image_files, kind_of, split_of
from icp_jax.vision.image_settings import ImageSettings
from icp_jax.vision.images import NotAnImage
from icp_jax.vision.process import preprocess

log = logging.getLogger("icp_jax")


def calibration_pixels(
    data: str, count: int, seed: int, settings: ImageSettings
) -> Float[np.ndarray, "n 3 s s"]:
    """Draw `count` images of a folder with the seed; preprocessed, in the order of file names.

    Files that PIL cannot read are replaced by other images. Logs the number of skipped files.
    Raises InputError if there are too few images.
    """

    def too_few(images: int, why: str) -> InputError:
        return InputError(
            f"calibration data {data} has {images} images, but {count} are asked for: "
            f"give more, or lower calibration.samples{why and '; '}{why}"
        )

    kind, folder = kind_of(data)
    listed = image_files(split_of(folder, "train").images if kind == "coco" else folder)
    files, others = listed.images, list(listed.others)
    if len(files) < count:
        raise too_few(len(files), listed.said())
    order = np.random.default_rng(seed).permutation(len(files))
    spare = iter(order[count:])
    pixels = np.empty((count, 3, settings.side, settings.side), np.float32)
    for slot, k in enumerate(sorted(order[:count])):
        while True:
            try:
                pixels[slot], _ = preprocess(files[k], settings)
                break
            except NotAnImage as error:
                others.append(files[k].name)
                if (k := next(spare, None)) is None:
                    left = len(files) - len(others) + len(listed.others)
                    raise too_few(left, str(error)) from None
    if others:
        log.warning("%s: %s", data, Listed(files, others).said())
    return pixels
