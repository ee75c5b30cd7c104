"""Names of files that come from a file: an index, a layout. What they may be, and where they lead.

Also what a file holds that is not what its name says, for a message.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from converters.rules import ConversionError

COMPONENT, WHOLE = 255, 4095  # the longest name and path that Linux takes, in bytes
INDEX = "model.safetensors.index.json"
SHOWN = 60  # characters of a name in a message
TORCH_SUFFIXES = (".pth", ".pt")  # whole models in one file, without a config
SAFETENSORS, TORCH = (".safetensors",), (".bin", *TORCH_SUFFIXES)  # what a shard's name may end in


def shown(name: object) -> str:
    """A name for a message of one line."""
    text = ascii(name)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 20]}...{text[-17:]}"


def inside(folder: Path, name: object, origin: object) -> Path:
    """The path of `name` in `folder`, for a name that the file `origin` gives.

    Such a name is relative and stays in the folder: it has no `..`, no drive and no backslash. A
    link in the folder may point elsewhere, as a hub cache's do: it is followed by readers, see
    `create` for writers. Raises ConversionError for any other name.
    """
    wrong = _wrong(folder, name)
    if wrong:
        raise ConversionError(
            f"{origin} names the file {shown(name)}, which {wrong}: "
            "a name must be relative and stay inside its folder"
        )
    return folder / str(name)


def _wrong(folder: Path, name: object) -> str:
    """What speaks against a name; nothing where it may be used."""
    if not isinstance(name, str):
        return "is no text"
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
    """The places in `folder` of the weights' files that `origin` names, by name.

    suffixes: what the names may end in, so that no shard takes the place of another file. Raises
    ConversionError for a name that `inside` refuses, and for two that cannot both be there.
    """
    places = {name: inside(folder, name, origin) for name in names}
    taken = {*places.values(), folder / INDEX}
    for name, path in places.items():
        if path.suffix not in suffixes:
            raise ConversionError(
                f"{origin} names the file {shown(name)} as a shard: "
                f"the name of one ends in {' or '.join(suffixes)}"
            )
        if len(taken) <= len(places) or not taken.isdisjoint(path.parents):
            raise ConversionError(f"{origin} names one place twice: {shown(name)} and another name")
    return places


def create(folder: Path, name: str, origin: object = "the layout") -> BinaryIO:
    """A new file in `folder`, open for reading and writing, with the folders on its way.

    Nothing is ever written through a link: raises ConversionError where one leads elsewhere.
    """
    path = inside(folder, name, origin)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConversionError(f"{origin} names {shown(name)}, and a file is in its way") from None
    if path.is_symlink() or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ConversionError(f"{path} is behind a link, and is not written through it")
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "r+b")


def foreign(path: Path) -> str:
    """What a file holds instead of weights, with advice; nothing where it cannot be told."""
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
