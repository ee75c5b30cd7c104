"""Preprocessing settings of a SAM checkpoint: size, mean and std of its images.

A Hugging Face folder has them in `processor_config.json` under `image_processor`, or else in
`preprocessor_config.json`, in the order of transformers. A `.pth` file may have `pixel_mean` and
`pixel_std` for pixels from 0 to 255. Missing settings are SAM's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from icp_jax.errors import InputError
from icp_jax.vision.json_files import read_json

Channels = tuple[float, float, float]  # red, green, blue
WHOLE, ALONE = "processor_config.json", "preprocessor_config.json"
FLAGS = ("do_resize", "do_rescale", "do_normalize", "do_pad", "do_center_crop")
RESAMPLES = range(6)  # PIL's: nearest, Lanczos, bilinear, bicubic, box, Hamming


@dataclass(frozen=True)
class ImageSettings:
    """How an image is resized, rescaled, normalised and padded."""

    side: int = 1024  # side of the square input, in pixels
    longest: int | None = None  # longest side after resizing; None: `side`
    mean: Channels = (0.485, 0.456, 0.406)  # ImageNet's, in [0, 1]
    std: Channels = (0.229, 0.224, 0.225)
    scale: float = 1 / 255  # factor on the pixels before mean and std
    resample: int = 2  # PIL's bilinear
    resize: bool = True


def image_settings(
    side: int, folder: Path | None = None, pixels: Mapping[str, Any] | None = None
) -> ImageSettings:
    """The settings of a model with an input of `side` by `side` pixels.

    folder: the model's folder. pixels: `pixel_mean` and `pixel_std` `[3, 1, 1]` of its checkpoint.
    Raises InputError for unsupported settings, or if the folder and the checkpoint differ.
    """
    path, record = _record(folder)
    told = replace(ImageSettings(side), **_followed(path, record, side))
    if not pixels:
        return told
    stored = _stored(pixels)
    if not {"image_mean", "image_std"} & set(record):
        return replace(told, mean=stored.mean, std=stored.std, scale=1.0)
    for name in ("mean", "std"):
        of_file = np.divide(getattr(told, name), told.scale)
        if not np.allclose(of_file, getattr(stored, name), rtol=1e-3):
            raise InputError(
                f"{path} and the checkpoint's pixel_{name} differ: delete one of the two"
            )
    return told


def of_source(source: Any) -> ImageSettings:
    """The settings of a model in memory or of an open folder. Raises InputError."""
    params = getattr(source, "params", None)
    if params is not None:
        pixels = params.get("pixels")
    else:
        rules = [rule for rule in source.placed if rule.path[0] == "pixels"]
        pixels = {rule.path[1]: source.reader.read(rule.name) for rule in rules}
    return image_settings(source.family.side, source.folder, pixels)


def _record(folder: Path | None) -> tuple[Path, Mapping[str, Any]]:
    """(file, its settings). As in transformers, null means unset, and false for a flag."""
    if folder is not None and not folder.exists():
        raise InputError(f"{folder} does not exist: put back the model's folder, for its settings")
    if folder is None or not folder.is_dir():  # a .pth file: its folder is not part of the model
        return Path(ALONE), {}
    whole, alone = folder / WHOLE, folder / ALONE
    if whole.is_file() and (inner := read_json(whole).get("image_processor")) is not None:
        if not isinstance(inner, Mapping):
            raise InputError(f"{whole}: image_processor must be a JSON object")
        path, record = whole, inner
    else:
        path, record = alone, read_json(alone) if alone.is_file() else {}
    flags = {key: False for key in FLAGS if record.get(key, False) is None}
    return path, {key: value for key, value in record.items() if value is not None} | flags


def _stored(pixels: Mapping[str, Any]) -> ImageSettings:
    """Settings from `pixel_mean` and `pixel_std`; either may be missing."""
    default = ImageSettings()
    mean, std = (
        np.divide(values, default.scale).tolist() for values in (default.mean, default.std)
    )
    mean, std = (
        _channels(np.asarray(pixels.get(name, values)).astype(np.float64).ravel().tolist())
        for name, values in (("pixel_mean", mean), ("pixel_std", std))
    )
    if mean is None or std is None or min(std) <= 0:
        raise InputError("the checkpoint's pixel_mean and pixel_std must have three numbers each")
    return replace(default, mean=mean, std=std, scale=1.0)


def _followed(path: Path, record: Mapping[str, Any], side: int) -> dict[str, Any]:
    """Fields of `ImageSettings` from a file's settings. Raises InputError."""

    def refuse(key: str, wanted: str) -> InputError:
        got = str(record[key])
        return InputError(f"{path}: {key} must be {wanted}, got {got[:60]}")

    def flag(key: str, default: bool) -> bool:
        if not isinstance(record.get(key, default), bool):
            raise refuse(key, "true or false")
        return record.get(key, default)

    for key, only in (("do_pad", True), ("do_center_crop", False)):
        if flag(key, only) != only:
            raise refuse(key, f"{str(only).lower()} for this model")
    found: dict[str, Any] = {"resize": flag("do_resize", True)}
    if "size" in record and found["resize"]:
        found["longest"] = _edge(record["size"], side)
        if found["longest"] is None:
            raise refuse("size", f"a longest_edge from 1 to the model's {side}")
    if "pad_size" in record and not _is_square(record["pad_size"], side):
        raise refuse("pad_size", f"the model's height {side} and width {side}")
    if "resample" in record:
        found["resample"] = record["resample"]
        if type(record["resample"]) is not int or record["resample"] not in RESAMPLES:
            raise refuse("resample", "a PIL filter from 0 to 5")
    for key, name in (("rescale_factor", "scale"), ("image_mean", "mean"), ("image_std", "std")):
        values = _channels(record[key]) if key in record else None
        if values is not None and (name == "mean" or min(values) > 0):
            found[name] = values[0] if name == "scale" else values
        elif key in record:
            raise refuse(key, "one number or three" + (", above 0" if name != "mean" else ""))
    if not flag("do_rescale", True):
        found["scale"] = 1.0
    if not flag("do_normalize", True):
        found |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return found


def _edge(size: Any, side: int) -> int | None:
    """The longest edge of a size if it is at most `side`, else None."""
    edge = size.get("longest_edge") if isinstance(size, Mapping) else None
    return edge if type(edge) is int and 0 < edge <= side else None


def _is_square(size: Any, side: int) -> bool:
    both = [size.get(k) for k in ("height", "width")] if isinstance(size, Mapping) else [size]
    return all(length == side for length in both)


def _channels(given: Any) -> Channels | None:
    """One number for all channels, or three, as a tuple; None if invalid."""
    values = list(given) if isinstance(given, list | tuple) else [given] * 3
    if len(values) != 3 or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        return None
    return float(values[0]), float(values[1]), float(values[2])
