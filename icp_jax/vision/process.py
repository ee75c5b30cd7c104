"""Pre- and postprocessing on the host, as transformers' SamImageProcessor does it with PIL.

Images are resized (bilinear, by the longest side), normalised, and zero-padded at the bottom and
right. Mask logits are resized to the model's input, cropped to the image's part of it, and resized
to the image. `icp_jax.vision.image_settings` has the model's numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from icp_jax.errors import InputError
from icp_jax.vision.image_settings import ImageSettings
from icp_jax.vision.images import load_image

THRESHOLD = 0.0  # mask logits above it are foreground

Size = tuple[int, int]  # height, width


class Frame(NamedTuple):
    """The part of the model's square input that an image fills."""

    original: Size  # size of the given image
    resized: Size  # size of its part of the input; the rest is padding
    side: int  # side of the input

    @property
    def scale(self) -> Float[np.ndarray, "2"]:
        """Factors from (x, y) in the image to (x, y) in the input."""
        (h, w), (high, wide) = self.original, self.resized
        return np.array([wide / w, high / h])


def frame(size: Size, side: int, longest: int | None = None) -> Frame:
    """The frame of an image of (height, width) in an input of `side` pixels.

    longest: the image's longest side after resizing. Default: `side`. Raises InputError.
    """
    scale = (longest or side) / max(size)
    high, wide = (int(length * scale + 0.5) for length in size)
    if not high or not wide:
        raise InputError(f"an image of {size[1]} by {size[0]} pixels is too narrow: crop it first")
    return Frame(size, (high, wide), side)


def preprocess(
    image: Any, settings: ImageSettings | int = 1024
) -> tuple[Float[np.ndarray, "3 s s"], Frame]:
    """Preprocess an image (see `load_image`) into the model's input, float32, and its frame.

    settings: see `icp_jax.vision.image_settings`; an int is the side, with SAM's defaults.
    Raises InputError.
    """
    from PIL import Image

    how = ImageSettings(settings) if isinstance(settings, int) else settings
    pixels = load_image(image)
    size = (pixels.shape[0], pixels.shape[1])
    if how.resize:
        where = frame(size, how.side, how.longest)
        high, wide = where.resized
        method = Image.Resampling(how.resample)
        pixels = np.asarray(Image.fromarray(pixels).resize((wide, high), method))
    elif max(size) > how.side:
        raise InputError(
            f"an image of {size[1]} by {size[0]} pixels exceeds the model's {how.side} by "
            f"{how.side}: resize it, or set do_resize in its preprocessor_config.json"
        )
    else:
        where = Frame(size, size, how.side)
    scaled = (pixels.astype(np.float64) * how.scale).astype(np.float32)
    normal = (scaled - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    out = np.zeros((3, how.side, how.side), np.float32)
    out[:, : where.resized[0], : where.resized[1]] = normal.transpose(2, 0, 1)
    return out, where


def postprocess(logits: Shaped[np.ndarray, "*b s s"], where: Frame) -> Float[np.ndarray, "*b h w"]:
    """Resize the model's mask logits to the size of the image, float32."""
    logits = np.asarray(logits, np.float32)
    full = (where.side, where.side)
    return resize(resize(logits, full, keep=where.resized), where.original)


def binarise(logits: Float[np.ndarray, "*b h w"]) -> Bool[np.ndarray, "*b h w"]:
    """Threshold mask logits into masks."""
    return logits > THRESHOLD


def resize(
    x: Float[np.ndarray, "*b i j"], size: Size, keep: Size | None = None
) -> Float[np.ndarray, "*b h w"]:
    """Bilinear resize as torch's `interpolate(align_corners=False)`.

    keep: (rows, columns) to compute, from the top left. Default: all.
    """
    keep = keep or size
    low, high, part = _taps(x.shape[-2], size[0], keep[0])
    x = x[..., low, :] * (1 - part[:, None]) + x[..., high, :] * part[:, None]
    low, high, part = _taps(x.shape[-1], size[1], keep[1])
    return x[..., low] * (1 - part) + x[..., high] * part


def _taps(have: int, want: int, keep: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output index: its two input neighbours and the weight of the second."""
    ratio, half = np.float32(have) / np.float32(want), np.float32(0.5)
    centre = np.maximum((np.arange(keep, dtype=np.float32) + half) * ratio - half, 0)
    low = centre.astype(np.int64)
    return low, np.minimum(low + 1, have - 1), centre - low.astype(np.float32)
