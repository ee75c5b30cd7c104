"""Folders of images: plain ones, SA-1B's (an image and its json side by side), and COCO's.

`sa1b:DIR` and `coco:DIR` say which; a plain DIR is looked at: what has COCO's annotations is
COCO, anything else is taken for its images. Of COCO's splits, training gives the calibration
images and validation the evaluation.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from icp_jax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SHOWN = 3  # names of files left out, in a line
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


class Listed(NamedTuple):
    """The images of a folder by name, and the names of all other files."""

    images: list[Path]
    others: list[str]

    def said(self) -> str:
        """The others in a line; empty where there are none."""
        if not self.others:
            return ""
        more = ", ..." if len(self.others) > SHOWN else ""
        names = ", ".join(self.others[:SHOWN])
        return f"{len(self.others)} left out, hidden or no images: {names}{more}"


def image_files(folder: Path) -> Listed:
    """Images, and what is left out: hidden files and those of other kinds.

    A json named as an image is that image's. Raises InputError where there are no images.
    """
    files = [path for path in sorted(folder.iterdir()) if not path.is_dir()]
    images = [path for path in files if _looks_like_an_image(path)]
    if not images:
        raise InputError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    known = {path.name for path in images} | {path.with_suffix(".json").name for path in images}
    return Listed(images, [path.name for path in files if path.name not in known])


def _looks_like_an_image(path: Path) -> bool:
    hidden = path.name.startswith(".")  # such as macOS' ._a.jpg
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()
