"""Write a checkpoint to a hidden folder, block by block, and rename it when it is complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import (
    AnyWriter,
    Reader,
    check_other_files,
    copy_other_files,
    open_checkpoint,
    open_writer,
)
from converters.names import COMPONENT, WHOLE, shown
from converters.rules import Placed, lookup
from icp_jax.errors import InputError
from icp_jax.model import Model
from icp_jax.streaming.source import FolderSource, part_of

ADDED = len("." + ".12345678.partial")  # characters added to the name while writing


def check_free(out: str | Path) -> Path:
    """The absolute path of a new output folder. Raises InputError if it cannot be created."""
    if not str(out):
        raise InputError("no output folder given: give a path that does not exist yet")
    out = Path(out).expanduser()
    sizes = [len(os.fsencode(part)) for part in out.absolute().parts]
    if max(sizes[-1] + ADDED, *sizes) > COMPONENT or sum(sizes) + len(sizes) + ADDED > WHOLE:
        raise InputError(f"{shown(str(out))} is too long a name: choose a shorter one")
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists already: choose another output folder, or move it away")
    if not out.absolute().parent.is_dir():
        raise InputError(f"the output's folder {out.absolute().parent} does not exist: create it")
    return out.absolute()


class Aside:
    """Context manager that writes a folder atomically.

    Files go to `path`, a hidden folder next to `out`; `publish()` renames it to `out`. Leaving the
    context without `publish()` removes it.
    """

    def __init__(self, out: str | Path):
        self.out = check_free(out)

    def __enter__(self) -> Aside:
        made = tempfile.mkdtemp(".partial", f".{self.out.name}.", self.out.parent)
        self.path = Path(made)
        self.path.chmod(0o777 & ~_umask())
        return self

    def publish(self) -> None:
        if self.out.exists():
            raise InputError(f"{self.out} was created meanwhile: choose another output folder")
        os.rename(self.path, self.out)

    def __exit__(self, *exc) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class FolderSink:
    """Writes pruned blocks to a folder with the layout of `source`."""

    def __init__(self, source: FolderSource, folder: Path):
        self.source, self.folder = source, folder
        copy_other_files(source.folder, folder)
        self.writer = open_writer(folder, source.reader.layout)
        copy_unpruned(source, self.writer)

    def write(self, t: int, params: dict[str, Any], grids: Any = None) -> None:
        for rule in self.source.placed:
            if part_of(rule) == ("blocks", str(t)):
                self.writer.write(rule.name, rule.to_torch(lookup(params, rule.path[2:])))

    def close(self) -> None:
        self.writer.close()

    def abandon(self) -> None:
        self.writer.abandon()


def copy_unpruned(source: FolderSource, writer: AnyWriter) -> None:
    """Copy the weights outside the blocks, and buffers. Abandons the writer on an error."""
    try:
        for rule in source.placed:
            if rule.path[0] != "blocks":
                writer.write(rule.name, source.reader.read(rule.name))
        copy_buffers(source.reader, source.placed, writer)
    except BaseException:
        writer.abandon()
        raise


def copy_buffers(reader: Reader, placed: list[Placed], writer: AnyWriter) -> None:
    """Copy the tensors that are not weights."""
    weights = {rule.name for rule in placed}
    for name in reader.names():
        if name not in weights:
            writer.write(name, reader.read(name))


def sync(path: Path, deep: bool = True) -> None:
    """Flush a file or folder to disk with fsync.

    deep: include the folder's content, not only its list of names.
    """
    inside = path.rglob("*") if deep and path.is_dir() else ()
    for each in (*inside, path):
        number = os.open(each, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON file with a final newline."""
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def save(model: Model, out: str | Path) -> Path:
    """Save a model as a Hugging Face folder with the layout and dtypes of its source.

    Returns the folder, which is complete or absent. Raises InputError if `out` exists.
    """
    from converters import table_for

    entries = model.layout.entries
    placed = table_for(model.config["model_type"]).place(model.config, list(entries))
    check_other_files(model.folder)
    with Aside(out) as aside:
        copy_other_files(model.folder, aside.path)
        with open_writer(aside.path, model.layout) as writer:
            for rule in placed:
                leaf = np.asarray(lookup(model.params, rule.path))
                leaf = leaf.astype(entries[rule.name].dtype)
                writer.write(rule.name, rule.to_torch(leaf))
            if len(placed) < len(entries):
                with closing(open_checkpoint(model.folder)) as reader:
                    copy_buffers(reader, placed, writer)
        aside.publish()
        return aside.out
