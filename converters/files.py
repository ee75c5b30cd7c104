"""Checkpoint files of any kind, one tensor at a time, and what lies beside them.

Safetensors shards are memory-mapped, see `converters.safetensors_files`; `.bin` and `.pth` files go
through torch, see `converters.torch_files`. Writing, no more than one tensor is ever in memory (of
a `.pth` file, all are).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from converters.index import read_index
from converters.layout import Layout
from converters.names import SAFETENSORS, TORCH, TORCH_SUFFIXES, create, inside, shards, shown
from converters.rules import ConversionError, first_line
from converters.safetensors_files import SafetensorsReader, Writer


class Reader(Protocol):
    """A checkpoint's tensors by torch name, read when asked for."""

    layout: Layout
    files: dict[str, Path]  # the files that hold the tensors, by their names in the checkpoint

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> np.dtype: ...
    def read(self, name: str) -> np.ndarray: ...
    def fetch(self, names: Iterable[str]) -> None: ...
    def forget(self) -> None: ...
    def close(self) -> None: ...


def lone_torch_file(path: Path) -> Path | None:
    """The `.pth` file that a path is, or that is all the weights of a folder."""
    if path.is_file():
        return path if path.suffix in TORCH_SUFFIXES else None
    found = [p for p in sorted(path.glob("*")) if p.suffix in TORCH_SUFFIXES and p.is_file()]
    return found[0] if len(found) == 1 else None


def open_checkpoint(folder: str | Path) -> Reader:
    """Open a Hugging Face folder's weights, or a `.pth` file, alone or in a folder.

    Of several, those that transformers takes: safetensors before `.bin`, a single file before an
    index. Raises ConversionError.
    """
    from converters.torch_files import TorchReader

    folder = Path(folder)
    for single, suffixes, reader in (
        ("model.safetensors", SAFETENSORS, SafetensorsReader),
        ("pytorch_model.bin", TORCH, TorchReader),
    ):
        if (folder / single).is_file():
            return reader({single: folder / single}, None)
        index = folder / f"{single}.index.json"
        if index.is_file():
            files, text = _shards_of(index, suffixes)
            return reader(files, text)
    lone = lone_torch_file(folder)
    if lone is not None:
        return TorchReader({lone.name: lone}, None)
    raise ConversionError(
        f"no weights in {folder}: expected model.safetensors or pytorch_model.bin, "
        "or their .index.json with shards, or one .pth file"
    )


def _shards_of(index: Path, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], str]:
    """The shards that an index names, in order, and its text. Raises ConversionError."""
    try:
        text = index.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConversionError(f"{index} cannot be read: {first_line(error)}") from None
    named = read_index(text, index)["weight_map"].values()
    for name in named:  # before they are looked up: a list cannot be
        inside(index.parent, name, index)
    found = shards(index.parent, sorted(set(named)), suffixes, index)
    if not found:
        raise ConversionError(f"{index} names no shards")
    for name, path in found.items():
        if not path.is_file():
            raise ConversionError(f"missing shard {shown(name)} named by {index}")
    return found, text


class AnyWriter(Protocol):
    """Takes every tensor of a layout, in any order; then `close`, or `abandon`.

    A context manager that does the one or the other.
    """

    def __enter__(self) -> AnyWriter: ...
    def __exit__(self, kind: object, error: object, trace: object) -> None: ...
    def write(self, name: str, tensor: np.ndarray) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...


def open_writer(folder: str | Path, layout: Layout) -> AnyWriter:
    """The writer of a layout's kind of file, in `folder`."""
    if layout.torch:
        from converters.torch_files import TorchWriter

        return TorchWriter(folder, layout)
    return Writer(folder, layout)


RECORD = "icp_run.json"  # what a run did, in the folder that it wrote


def other_files(source: Path) -> list[Path]:
    """Config, tokenizer and the like: files that hold no weights, nor the record of an earlier run.

    Of a single file there is nothing else: its folder is the user's, not the model's.
    """
    if source.is_file():
        return []
    return sorted(
        path
        for path in source.iterdir()
        if (path.is_file() or (path.is_symlink() and not path.is_dir()))
        and path.name != RECORD
        and not holds_weights(path.name)
    )


def check_other_files(source: Path) -> None:
    """Raises ConversionError where one of `other_files` cannot be read."""
    for path in other_files(source):
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError as error:
            raise ConversionError(
                f"{path} cannot be read ({error.strerror}), and is to be copied: "
                "make it readable, or move it away"
            ) from None


def copy_other_files(source: Path, target: Path) -> None:
    """Copy `other_files` into a folder."""
    for path in other_files(source):
        with path.open("rb") as old, create(target, path.name, source) as new:
            shutil.copyfileobj(old, new)


WEIGHT_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".ot",
    ".onnx",
    ".gguf",
    ".index.json",
)


def holds_weights(name: str) -> bool:
    """Whether a file of a Hugging Face folder holds weights (or lists the files that do)."""
    return name.endswith(WEIGHT_SUFFIXES)


def blocks_of_bytes(path: Path, size: int = 1 << 24) -> Iterator[bytes]:
    """A file's bytes, 16 MiB at a time, for hashing."""
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk
