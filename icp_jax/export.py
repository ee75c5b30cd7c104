"""Writing a pruned checkpoint: aside, filled block by block, checked, and renamed at the end."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import (
    Reader,
    SafetensorsReader,
    Writer,
    copy_other_files,
    open_checkpoint,
)
from converters.rules import Placed, lookup
from icp_jax.errors import InputError
from icp_jax.residency import FolderSource, Model, part_of


def check_free(out: str | Path) -> Path:
    """The output folder's path. Raises InputError where something is there already."""
    if not str(out):
        raise InputError("no output folder given: --out takes a folder that does not exist yet")
    out = Path(out).expanduser()
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists already: choose another --out, or move it away")
    if not out.absolute().parent.is_dir():
        raise InputError(f"the folder {out.absolute().parent} for the output does not exist")
    return out.absolute()


class Aside:
    """A folder that appears under its name whole or not at all: a context manager.

    Files are written to `path`, a hidden folder beside `out`; `publish()` renames it. Leaving
    the context without that removes it.
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
            raise InputError(f"{self.out} has appeared meanwhile: choose another --out")
        os.rename(self.path, self.out)

    def __exit__(self, *exc) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class FolderSink:
    """Takes pruned blocks of `source` and fills a folder of the source's layout with them."""

    def __init__(self, source: FolderSource, folder: Path):
        self.source, self.folder = source, folder
        copy_other_files(source.folder, folder)
        self.writer = Writer(folder, source.reader.layout)
        for rule in source.placed:
            if rule.path[0] != "blocks":
                self.writer.write(rule.name, source.reader.read(rule.name))
        copy_buffers(source.reader, source.placed, self.writer)

    def write(self, t: int, params: dict[str, Any]) -> None:
        for rule in self.source.placed:
            if part_of(rule) == ("blocks", str(t)):
                self.writer.write(rule.name, rule.to_torch(lookup(params, rule.path[2:])))

    def close(self) -> None:
        self.writer.close()

    def abandon(self) -> None:
        self.writer.abandon()


def copy_buffers(reader: Reader, placed: list[Placed], writer: Writer) -> None:
    """Copy what a checkpoint holds beside its weights: buffers that the table ignores."""
    weights = {rule.name for rule in placed}
    for name in reader.names():
        if name not in weights:
            writer.write(name, reader.read(name))


@dataclass(frozen=True)
class Counted:
    """What the exported file holds of the pruned layers."""

    zeros: int
    size: int
    layers: dict[str, tuple[int, int]]  # torch name -> (zeros, size)

    @property
    def sparsity(self) -> float:
        return self.zeros / self.size


def verify(
    source: FolderSource,
    folder: Path,
    budgets: list[dict[str, int]],
    pattern: tuple[int, int] | None,
    tuned: bool,
) -> Counted:
    """Re-read an exported folder: finite, sparse as promised, the rest bit-identical.

    budgets: zeros a linear a block. tuned: whether blocks after the first may have changed
    beside their kernels. Raises RuntimeError for a folder that is not as it should be.
    """
    reader: Reader = open_checkpoint(folder)
    if not isinstance(reader, SafetensorsReader) or reader.names() != source.reader.names():
        raise RuntimeError(f"{folder}: the exported tensors are not those of the source")
    layers = {}
    for name in set(reader.names()) - {rule.name for rule in source.placed}:
        if reader.read(name).tobytes() != source.reader.read(name).tobytes():
            raise RuntimeError(f"exported tensor {name!r} changed, and should not have")
    for rule in source.placed:
        tensor = reader.read(rule.name)
        budget = _budget(rule, budgets)
        if budget is None:
            free = tuned and rule.path[0] == "blocks" and rule.path[1] != "0"
            if not free and tensor.tobytes() != source.reader.read(rule.name).tobytes():
                raise RuntimeError(f"exported tensor {rule.name!r} changed, and should not have")
        else:
            zeros = tensor.size - int(np.count_nonzero(tensor))
            if zeros < budget:
                raise RuntimeError(f"exported tensor {rule.name!r} has {zeros} zeros, not {budget}")
            if pattern is not None and not _holds(tensor, *pattern):
                raise RuntimeError(f"exported tensor {rule.name!r} breaks the pattern {pattern}")
            layers[rule.name] = (zeros, tensor.size)
        if not np.all(np.isfinite(tensor)):
            raise InputError(
                f"pruned tensor {rule.name!r} leaves the range of {tensor.dtype}: "
                "lower --compensate.lr or add calibration samples"
            )
    reader.close()
    return Counted(sum(z for z, _ in layers.values()), sum(n for _, n in layers.values()), layers)


def _budget(rule: Placed, budgets: list[dict[str, int]]) -> int | None:
    if rule.path[0] != "blocks" or rule.path[-1] != "kernel":
        return None
    return budgets[int(rule.path[1])].get(rule.path[2])


def _holds(weight: np.ndarray, n: int, m: int) -> bool:
    """Whether every m consecutive inputs of a torch weight [out, in] hold at most n non-zeros."""
    groups = np.asarray(weight != 0).reshape(weight.shape[0], -1, m)
    return bool((groups.sum(axis=2) <= n).all())


def write_json(path: Path, record: dict[str, Any]) -> None:
    """A small file, with a final newline."""
    path.write_text(json.dumps(record, indent=2) + "\n")


def save(model: Model, out: str | Path) -> Path:
    """Write a model in memory as a Hugging Face folder with the layout and dtypes of its source.

    Raises InputError where `out` exists; nothing is half-written.
    """
    from converters import table_for

    placed = table_for(model.config["model_type"]).place(model.config, list(model.layout.entries))
    with Aside(out) as aside:
        copy_other_files(model.folder, aside.path)
        writer = Writer(aside.path, model.layout)
        try:
            for rule in placed:
                leaf = np.asarray(lookup(model.params, rule.path))
                leaf = leaf.astype(model.layout.entries[rule.name].dtype)
                writer.write(rule.name, rule.to_torch(leaf))
            if len(placed) < len(model.layout.entries):
                copy_buffers(open_checkpoint(model.folder), placed, writer)
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        aside.publish()
        return aside.out
