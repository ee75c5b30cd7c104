"""Folders of images: plain ones, SA-1B's (an image and its json side by side), and COCO's.

`sa1b:DIR` and `coco:DIR` say which; a plain DIR is looked at: what has COCO's annotations is
COCO, anything else is taken for its images. Of COCO's splits, training gives the calibration
images and validation the evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converters.rules import first_line
from icp_jax.config import CalibrationConfig
from icp_jax.errors import InputError
from icp_jax.vision.process import preprocess

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
KINDS = ("sa1b", "coco")
ADVICE = "give a folder of images, sa1b:DIR or coco:DIR"


class Split(NamedTuple):
    """One annotation file of COCO and where its images lie."""

    annotations: Path
    images: Path


def kind_of(data: str) -> tuple[str, Path]:
    """('sa1b', 'coco' or 'images', the folder). Raises InputError where there is no folder."""
    kind, colon, rest = data.partition(":")
    named = bool(colon) and kind in KINDS
    path = Path(rest if named else data).expanduser()
    if not path.is_dir():
        raise InputError(f"no image folder {str(path)!r}: {ADVICE}")
    if named:
        return kind, path
    return ("coco" if _annotations(path) else "images"), path


def _annotations(folder: Path) -> list[Path]:
    inside = sorted((folder / "annotations").glob("instances_*.json"))
    return inside or [p for p in (folder / "annotations.json",) if p.is_file()]


def split_of(folder: Path, prefer: str) -> Split:
    """COCO's split whose name begins with `prefer`, or the first whose images are there."""
    splits = []
    for path in _annotations(folder):
        name = path.stem.removeprefix("instances_")
        for images in (folder / name, folder / "images" / name, folder / "images"):
            if images.is_dir():
                splits.append((not name.startswith(prefer), Split(path, images)))
                break
    if not splits:
        raise InputError(
            f"{folder} is no COCO directory: no annotations/instances_NAME.json with images in NAME"
        )
    return min(splits, key=lambda found: found[0])[1]


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"{path} is not JSON that can be read: {reason}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} is not a JSON object")
    return record


def image_files(folder: Path) -> list[Path]:
    """Images by name. Raises InputError where there are none."""
    found = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES]
    if not found:
        raise InputError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    return found


def calibration_files(config: CalibrationConfig) -> list[Path]:
    """`config.samples` image files, drawn with config.seed and then in the order of names.

    Raises InputError where there are fewer.
    """
    kind, folder = kind_of(config.data)
    files = image_files(split_of(folder, "train").images if kind == "coco" else folder)
    if len(files) < config.count:
        raise InputError(
            f"calibration data {config.data} has {len(files)} images, {config.count} are asked "
            "for: give more, or a smaller --calibration.samples"
        )
    chosen = np.random.default_rng(config.seed).permutation(len(files))[: config.count]
    return [files[k] for k in sorted(chosen)]


def calibration_pixels(config: CalibrationConfig, side: int) -> np.ndarray:
    """`[samples, 3, side, side]` float32, normalised and padded. Raises InputError."""
    files = calibration_files(config)
    pixels = np.empty((len(files), 3, side, side), np.float32)
    for k, path in enumerate(files):
        pixels[k], _ = preprocess(path, side)
    return pixels
