"""Checkpoint files of any kind, one tensor at a time, and what lies beside them.

Safetensors shards are memory-mapped, see `converters.safetensors_files`; `.bin` and `.pth` files go
through torch, see `converters.torch_files`. Writing, no more than one tensor is ever in memory (of
a `.pth` file, all are).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from converters.rules import ConversionError
from converters.safetensors_files import Layout, SafetensorsReader, Writer


class Reader(Protocol):
    """A checkpoint's tensors by torch name, read when asked for."""

    layout: Layout

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> np.dtype: ...
    def read(self, name: str) -> np.ndarray: ...
    def fetch(self, names: Iterable[str]) -> None: ...
    def forget(self) -> None: ...
    def close(self) -> None: ...


TORCH_SUFFIXES = (".pth", ".pt")  # whole models in one file, without a config


def lone_torch_file(path: Path) -> Path | None:
    """The `.pth` file that a path is, or that is all the weights of a folder."""
    if path.is_file():
        return path if path.suffix in TORCH_SUFFIXES else None
    found = [p for p in sorted(path.glob("*")) if p.suffix in TORCH_SUFFIXES and p.is_file()]
    return found[0] if len(found) == 1 else None


def open_checkpoint(folder: str | Path) -> Reader:
    """Open a Hugging Face folder's weights, safetensors first, or a `.pth` file, alone or in a
    folder. Raises ConversionError.
    """
    from converters.torch_files import TorchReader

    folder = Path(folder)
    for single, reader in (
        ("model.safetensors", SafetensorsReader),
        ("pytorch_model.bin", TorchReader),
    ):
        index = folder / f"{single}.index.json"
        if index.is_file():
            return reader(folder, _shards_of(index), index.read_text())
        if (folder / single).is_file():
            return reader(folder, [single], None)
    lone = lone_torch_file(folder)
    if lone is not None:
        return TorchReader(lone.parent, [lone.name], None)
    raise ConversionError(
        f"no weights in {folder}: expected model.safetensors or pytorch_model.bin, "
        "or their .index.json with shards, or one .pth file"
    )


def _shards_of(index: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConversionError(f"{index} is not a checkpoint index: {error}") from None
    for shard in shards:
        if not (index.parent / shard).is_file():
            raise ConversionError(f"missing shard {shard!r} named by {index}")
    return shards


class AnyWriter(Protocol):
    """Takes every tensor of a layout, in any order; then `close`, or `abandon`."""

    def write(self, name: str, tensor: np.ndarray) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...


def open_writer(folder: str | Path, layout: Layout) -> AnyWriter:
    """The writer of a layout's kind of file, in `folder`."""
    if layout.torch:
        from converters.torch_files import TorchWriter

        return TorchWriter(folder, layout)
    return Writer(folder, layout)


def copy_other_files(source: Path, target: Path) -> None:
    """Copy config, tokenizer and the like: all plain files that hold no weights.

    Of a single file there is nothing else: its folder is the user's, not the model's.
    """
    if source.is_file():
        return
    for path in sorted(source.iterdir()):
        if path.is_file() and not holds_weights(path.name):
            shutil.copyfile(path, target / path.name)


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
