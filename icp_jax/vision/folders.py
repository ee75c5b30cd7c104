"""Image folders: plain ones, SA-1B (a .json file next to each image), and COCO.

`sa1b:DIR` and `coco:DIR` name the format. A plain DIR is COCO if it has COCO's annotations, else a
folder of images. Calibration uses COCO's training split, evaluation its validation split.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from icp_jax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SHOWN = 3  # skipped files named in a message
KINDS = ("sa1b", "coco")
ADVICE = "give a folder of images, sa1b:DIR or coco:DIR"


class Split(NamedTuple):
    """An annotation file of COCO and the folder of its images."""

    annotations: Path
    images: Path


def kind_of(data: str) -> tuple[str, Path]:
    """('sa1b', 'coco' or 'images', the folder). Raises InputError if it is not a folder."""
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
    """COCO's split whose name starts with `prefer`, else the first one that has images."""
    splits = []
    for path in _annotations(folder):
        name = path.stem.removeprefix("instances_")
        for images in (folder / name, folder / "images" / name, folder / "images"):
            if images.is_dir():
                splits.append((not name.startswith(prefer), Split(path, images)))
                break
    if not splits:
        raise InputError(
            f"{folder} is not a COCO folder: needs annotations/instances_NAME.json and images in "
            "NAME/"
        )
    return min(splits, key=lambda found: found[0])[1]


class Listed(NamedTuple):
    """The images of a folder, and the names of the other files."""

    images: list[Path]
    others: list[str]

    def said(self) -> str:
        """A line about the other files; empty if there are none."""
        if not self.others:
            return ""
        more = ", ..." if len(self.others) > SHOWN else ""
        names = ", ".join(self.others[:SHOWN])
        return f"{len(self.others)} files skipped, hidden or not images: {names}{more}"


def image_files(folder: Path) -> Listed:
    """List the images of a folder; hidden files and other types are `others`.

    A .json file with the name of an image is not listed. Raises InputError if there are no images.
    """
    files = [path for path in sorted(folder.iterdir()) if not path.is_dir()]
    images = [path for path in files if _looks_like_an_image(path)]
    if not images:
        raise InputError(f"{folder} has no images: expected {', '.join(SUFFIXES)}")
    known = {path.name for path in images} | {path.with_suffix(".json").name for path in images}
    return Listed(images, [path.name for path in files if path.name not in known])


def _looks_like_an_image(path: Path) -> bool:
    hidden = path.name.startswith(".")  # such as macOS' ._a.jpg
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()
