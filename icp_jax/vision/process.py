"""Images in and masks out, on the host: what transformers' SamImageProcessor does with PIL.

In: longest side to the model's, bilinear by PIL; normalised; padded below and on the right with
zeros. Out: mask logits bilinearly to the model's side, cut to the image, bilinearly to its size.
A model may ask for other numbers: see `icp_jax.vision.image_settings`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from icp_jax.errors import InputError
from icp_jax.vision.image_settings import ImageSettings
from icp_jax.vision.images import load_image

THRESHOLD = 0.0  # logits above it are mask

Size = tuple[int, int]  # height, width


class Frame(NamedTuple):
    """Where an image lies in the model's square input."""

    original: Size  # of the image as given
    resized: Size  # of its part of the input; the rest is padding
    side: int  # of the input

    @property
    def scale(self) -> Float[np.ndarray, "2"]:
        """What takes (x, y) of the image to (x, y) of the input."""
        (h, w), (high, wide) = self.original, self.resized
        return np.array([wide / w, high / h])


def frame(size: Size, side: int, longest: int | None = None) -> Frame:
    """The place of an image of (height, width) in an input of `side`.

    longest: what its longest side becomes there; unset: it fills the input.
    """
    scale = (longest or side) / max(size)
    high, wide = (int(length * scale + 0.5) for length in size)
    if not high or not wide:
        raise InputError(f"an image of {size[1]} by {size[0]} pixels is too narrow for the model")
    return Frame(size, (high, wide), side)


def preprocess(
    image: Any, settings: ImageSettings | int = 1024
) -> tuple[Float[np.ndarray, "3 s s"], Frame]:
    """An image (see `load_image`) as the model's input, float32, and where it lies there.

    settings: the model's, see `icp_jax.vision.image_settings`; or a side, with SAM's own numbers.
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
            f"an image of {size[1]} by {size[0]} pixels is larger than the model's {how.side} by "
            f"{how.side}, and its preprocessor_config.json has do_resize false"
        )
    else:
        where = Frame(size, size, how.side)
    scaled = (pixels.astype(np.float64) * how.scale).astype(np.float32)
    normal = (scaled - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    out = np.zeros((3, how.side, how.side), np.float32)
    out[:, : where.resized[0], : where.resized[1]] = normal.transpose(2, 0, 1)
    return out, where


def postprocess(logits: Shaped[np.ndarray, "*b s s"], where: Frame) -> Float[np.ndarray, "*b h w"]:
    """Mask logits of the model at the size of the image, float32."""
    logits = np.asarray(logits, np.float32)
    full = (where.side, where.side)
    return resize(resize(logits, full, keep=where.resized), where.original)


def binarise(logits: Float[np.ndarray, "*b h w"]) -> Bool[np.ndarray, "*b h w"]:
    """Which pixels a mask holds."""
    return logits > THRESHOLD


def resize(
    x: Float[np.ndarray, "*b i j"], size: Size, keep: Size | None = None
) -> Float[np.ndarray, "*b h w"]:
    """Bilinear, half-pixel centres, edges repeated: torch's `interpolate(align_corners=False)`.

    keep: compute only so many rows and columns from the top left.
    """
    keep = keep or size
    low, high, part = _taps(x.shape[-2], size[0], keep[0])
    x = x[..., low, :] * (1 - part[:, None]) + x[..., high, :] * part[:, None]
    low, high, part = _taps(x.shape[-1], size[1], keep[1])
    return x[..., low] * (1 - part) + x[..., high] * part


def _taps(have: int, want: int, keep: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each place kept: the two neighbours, and the weight of the second."""
    ratio, half = np.float32(have) / np.float32(want), np.float32(0.5)
    centre = np.maximum((np.arange(keep, dtype=np.float32) + half) * ratio - half, 0)
    low = centre.astype(np.int64)
    return low, np.minimum(low + 1, have - 1), centre - low.astype(np.float32)
