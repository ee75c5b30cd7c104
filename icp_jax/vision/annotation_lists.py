"""List the images of COCO and SA-1B folders with their annotations, not yet decoded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from converters.names import inside
from icp_jax.errors import InputError
from icp_jax.vision.annotated_masks import Size
from icp_jax.vision.folders import image_files, split_of
from icp_jax.vision.json_files import read_json


class Row(NamedTuple):
    """One annotation."""

    name: str  # its id, or its place in the list
    number: int  # the same as a number, for the random seed
    content: Any


class Annotated(NamedTuple):
    """One image with its annotations."""

    path: Path
    size: Size | None  # from its record
    rows: list[Row]  # without crowds
    crowds: int


class Listed(NamedTuple):
    """The images of a folder with their annotations."""

    images: list[Annotated]
    lost: tuple[str, ...] = ()  # annotations without an image, each with the reason
    others: str = ""  # a line about skipped files; empty if none


def coco(folder: Path) -> Listed:
    """List the validation split of a COCO folder. Raises InputError."""
    split = split_of(folder, "val")
    where, record = split.annotations, read_json(split.annotations)
    try:
        images = {
            r["id"]: (inside(split.images, r["file_name"], where), r) for r in record["images"]
        }
        contents = list(record["annotations"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{where} is not in COCO's format: {error!r}") from None
    by_image: dict[Any, list[Row]] = {key: [] for key in images}
    lost = []
    for row in map(_row, range(len(contents)), contents):
        key = row.content.get("image_id") if isinstance(row.content, Mapping) else None
        if isinstance(key, str | int | float) and key in by_image:
            by_image[key].append(row)
        else:
            lost.append(f"{where.name}: annotation {row.name} has an unknown image_id")
    found = [_annotated(path, record, by_image[key]) for key, (path, record) in images.items()]
    return Listed(found, tuple(lost))


def sa1b(folder: Path) -> Listed:
    """List an SA-1B folder: each image has a .json file of the same name. Raises InputError."""
    found, files = [], image_files(folder)
    for path in files.images:
        beside = path.with_suffix(".json")
        if not beside.is_file():
            raise InputError(f"{path} has no {beside.name} next to it: give a folder of SA-1B")
        record = read_json(beside)
        contents = record.get("annotations")
        if not isinstance(contents, list):
            raise InputError(f"{beside} has no list of annotations: give a folder of SA-1B")
        rows = list(map(_row, range(len(contents)), contents))
        found.append(_annotated(path, record.get("image"), rows))
    return Listed(found, others=files.said())


def _row(place: int, content: Any) -> Row:
    given = content.get("id") if isinstance(content, Mapping) else None
    if isinstance(given, int | str) and str(given).isdecimal():
        return Row(str(given), int(given), content)
    return Row(f"at place {place}", place, content)


def _annotated(path: Path, record: Any, rows: list[Row]) -> Annotated:
    told = record if isinstance(record, Mapping) else {}
    h, w = told.get("height"), told.get("width")
    size = (h, w) if type(h) is int and type(w) is int and min(h, w) > 0 else None
    single = [row for row in rows if not _is_crowd(row.content)]
    return Annotated(path, size, single, len(rows) - len(single))


def _is_crowd(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content.get("iscrowd"))
