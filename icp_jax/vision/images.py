"""Load images as upright RGB arrays from files, PIL and NumPy."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from converters.rules import first_line
from icp_jax.errors import InputError

DEEP = ("I", "F")  # prefixes of PIL modes with more than 8 bits per channel
# Exceptions of PIL's plugins for a damaged file.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    struct.error,
)


class NotAnImage(InputError):
    """The file is not an image."""


def load_image(image: Any, upright: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """Load a path, a PIL image, or a uint8 array `[h, w]`, `[h, w, 1]` or `[h, w, 3 or 4]` as RGB.

    Grey, palette and CMYK images are converted; transparent ones are composited over white.
    upright: apply the EXIF orientation. Raises InputError for unreadable images and for more than
    8 bits per channel, and its subclass NotAnImage for files that are not images.
    """
    from PIL import Image

    if isinstance(image, str | Path):
        with warnings.catch_warnings():  # PIL also raises an error if the warning matters
            warnings.simplefilter("ignore")
            return _from_file(image, upright)
    if not isinstance(image, Image.Image):
        return load_image(_from_array(image, Image))
    if image.mode.startswith(DEEP):
        raise InputError(
            f"an image of mode {image.mode} has more than 8 bits per channel: convert it to 8 bits"
        )
    if 0 in image.size:
        raise InputError(f"an image of {image.width} by {image.height} pixels is empty")
    image = _upright(image) if upright else image
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        above = image.convert("RGBA")
        white = Image.new("RGBA", above.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, above)
    return np.array(image.convert("RGB"))


def _from_file(path: str | Path, upright: bool) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            return load_image(opened, upright)
    except InputError as error:
        raise InputError(f"image {path}: {error}") from None
    except UnidentifiedImageError:
        raise NotAnImage(f"{path} is not an image that PIL can read") from None
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise InputError(f"image {path} cannot be read: {first_line(error)}") from None


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    image.load()  # raises for a damaged image; damaged EXIF data raises below
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ImageOps.exif_transpose(image)
        except Exception:  # invalid EXIF data, but the pixels are good
            return image


def _from_array(image: Any, pil: Any) -> Any:
    try:
        array = np.asarray(image)
    except ValueError:
        array = np.empty((), object)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(f"not an image: {_kind(image, array)}; give [h, w] or [h, w, 1, 3 or 4]")
    if array.dtype != np.uint8:
        raise InputError(f"an image array must be uint8, 0 to 255, got {array.dtype}")
    if not array.size:
        raise InputError(f"an image of {array.shape[1]} by {array.shape[0]} pixels is empty")
    return pil.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _kind(image: Any, array: np.ndarray) -> str:
    if array.dtype == object or not array.ndim:
        return type(image).__name__
    return f"array {array.dtype}{list(array.shape)}"
