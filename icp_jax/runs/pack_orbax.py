"""Packed Orbax folders: a packed Hugging Face folder, and what else the Orbax folder needs.

The tensors are packed in torch's order, so every command reads the result. `unpack` writes the tree
anew by Orbax, whose files of arrays have random names.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from converters.files import holds_weights
from converters.names import INDEX, create
from converters.packed_reader import PackedReader
from converters.rules import ConversionError
from icp_jax.errors import InputError
from icp_jax.runs.orbax import LAYOUT, PARAMS, SIDE, OrbaxReader, is_orbax, read_layout, tree_of
from icp_jax.runs.trees import save_tree
from icp_jax.streaming.source import FolderSource

KEPT = "packed-orbax"  # files of the Orbax folder, in the packed one
UNREAD = ("_CHECKPOINT_METADATA", "commit_success.txt")  # of Orbax, with times and a path
Copies = list[tuple[Path, Path]]  # (from, to), each relative to its folder


def open_orbax(folder: Path) -> OrbaxReader:
    """The reader of an Orbax folder, its tree in memory. Raises InputError or ConversionError."""
    if read_layout(folder / SIDE / LAYOUT, folder).torch:
        raise InputError(
            f"{folder} was converted from a .pth file, which pack does not read: "
            "save the model as safetensors first"
        )
    reader = OrbaxReader(folder, folder)
    reader.load()
    if others := reader.others():
        raise InputError(
            f"{folder} has a leaf {others[0]!r} that is no tensor of the model: remove it first"
        )
    return reader


def is_packed_orbax(folder: Path) -> bool:
    """Whether `pack` made this folder from an Orbax folder."""
    return is_orbax(folder / KEPT)


def packed_copies(names: Iterable[Path]) -> Copies:
    """Where the files of an Orbax folder lie in the packed one."""
    found = []
    for name in names:
        if name.parts[0] == PARAMS:
            if name.parent == Path(PARAMS) and name.name in UNREAD:
                found.append((name, KEPT / name))
        elif name.parent == Path(SIDE) and name.name != LAYOUT and not holds_weights(name.name):
            found.append((name, Path(name.name)))
        else:
            found.append((name, KEPT / name))
    return found


def unpacked_copies(names: Iterable[Path]) -> Copies:
    """The inverse of `packed_copies`."""
    return [
        (name, name.relative_to(KEPT) if name.parts[0] == KEPT else SIDE / name)
        for name in names
        if name != Path(INDEX)  # it is in the layout
    ]


def copy_packed(folder: Path, names: Iterable[Path], reader: OrbaxReader, out: Path) -> None:
    """Write all but the packed files."""
    copy(folder, packed_copies(names), out)
    write_index(reader, out)


def write_index(reader: OrbaxReader, folder: Path) -> None:
    """The index of the shards, as in a Hugging Face folder."""
    if reader.layout.index is not None:
        with create(folder, INDEX) as file:
            file.write(reader.layout.index.encode())


def unpack_tree(folder: Path, reader: PackedReader, out: Path) -> None:
    """Write `params/` of the Orbax folder `out`. Raises ConversionError for another layout."""
    path = folder / KEPT / SIDE / LAYOUT
    told = read_layout(path, out)
    if (told.headers, told.entries) != (reader.layout.headers, reader.layout.entries):
        raise ConversionError(f"{path} is not the layout of the packed files: pack the model again")
    with closing(FolderSource(folder)) as source:
        save_tree(out / PARAMS, tree_of(reader, source.placed))
    for name in UNREAD:
        (out / PARAMS / name).unlink(missing_ok=True)


def unpack_all(folder: Path, names: Iterable[Path], reader: PackedReader, out: Path) -> None:
    """Write the Orbax folder `out`. names: of the packed folder, but for the packed files."""
    unpack_tree(folder, reader, out)
    copy(folder, unpacked_copies(names), out)


def nbytes(path: Path) -> int:
    """The bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def copy(folder: Path, copies: Copies, target: Path) -> None:
    """Copy files and empty folders."""
    for name, to in copies:
        if (folder / name).is_dir():
            (target / to).mkdir(parents=True, exist_ok=True)
            continue
        with (folder / name).open("rb") as old, create(target, str(to), folder) as new:
            shutil.copyfileobj(old, new)
