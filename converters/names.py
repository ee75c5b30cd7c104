"""Checks of file names that an index or a layout contains, so that none leaves its folder.

Also detects files that hold something other than weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from converters.rules import ConversionError

COMPONENT, WHOLE = 255, 4095  # Linux's limits on a name and on a path, in bytes
INDEX = "model.safetensors.index.json"
SHOWN = 60  # most characters of a name in a message
TORCH_SUFFIXES = (".pth", ".pt")  # whole models in one file, without a config
SAFETENSORS, TORCH = (".safetensors",), (".bin", *TORCH_SUFFIXES)  # suffixes of shards
TOKENIZER_BIN = re.compile(r"tok(enizer|\d+)\.bin")  # tokenizers of llama2.c, not weights
GGUF = ".gguf"  # suffix of a whole model, or of a part of one, with config and tokenizer


def shown(name: object) -> str:
    """A name in ASCII, shortened for a one-line message."""
    text = ascii(name)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 20]}...{text[-17:]}"


def inside(folder: Path, name: object, origin: object) -> Path:
    """The path of `name` in `folder`, for a name read from the file `origin`.

    The name must be relative and stay in the folder, without `..`, drive or backslash. Links in
    the folder may point elsewhere, as in a hub cache: readers follow them, writers do not (see
    `create`). Raises ConversionError for any other name.
    """
    wrong = _wrong(folder, name)
    if wrong:
        raise ConversionError(
            f"{origin} names the file {shown(name)}, which {wrong}: "
            "a name must be relative and stay inside its folder"
        )
    return folder / str(name)


def _wrong(folder: Path, name: object) -> str:
    """What is wrong with a name; empty if nothing is."""
    if not isinstance(name, str):
        return "is not a string"
    try:
        parts = [os.fsencode(part) for part in name.split("/")]
    except UnicodeEncodeError:
        return "no file system takes"
    if not PurePosixPath(name).parts or name.endswith("/") or parts[-1] == b".":
        return "names no file"
    if name.startswith("/") or PureWindowsPath(name).drive or "\\" in name:
        return "is not relative, or has a drive or a backslash"
    if b".." in parts:
        return "leaves the folder by '..'"
    if "\0" in name or max(map(len, parts)) > COMPONENT:
        return "no file system takes"
    if len(os.fsencode(folder.absolute() / name)) > WHOLE:
        return "makes too long a path"
    return ""


def shards(
    folder: Path, names: Iterable[str], suffixes: tuple[str, ...], origin: object
) -> dict[str, Path]:
    """The paths in `folder` of the shards that `origin` names, by name.

    suffixes: of valid shards, so that a shard cannot replace another file. Raises ConversionError
    for a name that `inside` refuses, and for two names of one path.
    """
    places = {name: inside(folder, name, origin) for name in names}
    taken = {*places.values(), folder / INDEX}
    for name, path in places.items():
        if path.suffix not in suffixes:
            raise ConversionError(
                f"{origin} names the file {shown(name)} as a shard: "
                f"its name must end in {' or '.join(suffixes)}"
            )
        if len(taken) <= len(places) or not taken.isdisjoint(path.parents):
            raise ConversionError(
                f"{origin} names the file {shown(name)}, whose path another name also uses"
            )
    return places


def create(folder: Path, name: str, origin: object = "the layout") -> BinaryIO:
    """Create a file in `folder` and its parent folders; returns it open for reading and writing.

    Raises ConversionError rather than write through a link.
    """
    path = inside(folder, name, origin)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConversionError(
            f"{origin} names {shown(name)}, but one of its folders is a file: remove that file"
        ) from None
    if path.is_symlink() or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ConversionError(f"{path} would be written through a link: remove the link")
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "r+b")


def foreign(path: Path) -> str:
    """What a file holds instead of weights, with advice; empty if unknown."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "is empty: fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself: run git lfs pull"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "holds a web page, not weights: fetch it again"
    return ""
