"""Images in and masks out, on the host: what transformers' SamImageProcessor does with PIL.

In: longest side to the model's, bilinear by PIL; normalised; padded below and on the right with
zeros. Out: mask logits bilinearly to the model's side, cut to the image, bilinearly to its size.
A model may ask for other numbers: see `icp_jax.vision.image_settings`.
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from converters.rules import first_line
from icp_jax.errors import InputError
from icp_jax.vision.image_settings import ImageSettings

THRESHOLD = 0.0  # logits above it are mask
DEEP = ("I", "F")  # PIL's modes of more than 8 bits a channel begin so
# What PIL's plugins raise of a damaged file.
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


class NotAnImage(InputError):
    """A file is no image at all."""


def load_image(image: Any, upright: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a path, a PIL image, or a uint8 array `[h, w]`, `[h, w, 1]`, `[h, w, 3 or 4]`.

    Grey, palette and CMYK images are converted, transparency is laid over white. upright: turn
    the image as its EXIF orientation says; without it the pixels stay as they are stored. Raises
    InputError for more than 8 bits a channel, and NotAnImage, one of its kind, for a file that
    is no image.
    """
    from PIL import Image

    if isinstance(image, str | Path):
        with warnings.catch_warnings():  # what they say, an error says or is no matter
            warnings.simplefilter("ignore")
            return _from_file(image, upright)
    if not isinstance(image, Image.Image):
        return load_image(_from_array(image, Image))
    if image.mode.startswith(DEEP):
        raise InputError(
            f"an image of mode {image.mode} has more than 8 bits a channel: convert it to 8 first"
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

    image.load()  # a damaged image raises here, damaged EXIF data below
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ImageOps.exif_transpose(image)
        except Exception:  # PIL's parsers share no base, and the pixels are good without the tag
            return image


def _from_array(image: Any, pil: Any) -> Any:
    try:
        array = np.asarray(image)
    except ValueError:
        array = np.empty((), object)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(f"not an image: {_kind(image, array)}; need [h, w] or [h, w, 1, 3 or 4]")
    if array.dtype != np.uint8:
        raise InputError(f"an image array must be uint8, 0 to 255: got {array.dtype}")
    if not array.size:
        raise InputError(f"an image of {array.shape[1]} by {array.shape[0]} pixels is empty")
    return pil.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _kind(image: Any, array: np.ndarray) -> str:
    if array.dtype == object or not array.ndim:
        return type(image).__name__
    return f"array {array.dtype}{list(array.shape)}"


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
