"""Checkpoint files of any format, one tensor at a time, and the other files of a model folder.

Safetensors shards are memory-mapped, see `converters.safetensors_files`. `.bin` and `.pth` files
are read by torch, see `converters.torch_files`, and `.gguf` files are dequantized, see
`converters.gguf_files`. Packed files, in which zeros take one bit, are unpacked as they are read,
see `converters.packed_files`. Writers hold one tensor in memory at a time, except for `.pth`
files, which need all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from converters.index import read_index
from converters.layout import Layout
from converters.names import (
    GGUF,
    SAFETENSORS,
    TOKENIZER_BIN,
    TORCH,
    TORCH_SUFFIXES,
    create,
    inside,
    shards,
    shown,
)
from converters.packed_files import SUFFIX as PACKED
from converters.packed_files import packed_name
from converters.packed_reader import PackedReader
from converters.rules import ConversionError, first_line
from converters.safetensors_files import SafetensorsReader, Writer


class Reader(Protocol):
    """Lazy access to a checkpoint's tensors by torch name."""

    layout: Layout
    files: dict[str, Path]  # the weight files, by their names in the checkpoint

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> np.dtype: ...
    def read(self, name: str) -> np.ndarray: ...
    def fetch(self, names: Iterable[str]) -> None: ...
    def forget(self) -> None: ...
    def close(self) -> None: ...


def lone_torch_file(path: Path) -> Path | None:
    """The path itself if it is a `.pth` file, or the only such file in a folder; else None."""
    if path.is_file():
        return path if path.suffix in TORCH_SUFFIXES else None
    files = [p for p in sorted(path.glob("*")) if p.suffix in TORCH_SUFFIXES and p.is_file()]
    return files[0] if len(files) == 1 else None


def is_gguf(path: Path) -> bool:
    """Whether the path is a `.gguf` file."""
    return path.suffix == GGUF and path.is_file()


def open_checkpoint(folder: str | Path) -> Reader:
    """Open the weights of a Hugging Face folder, a `.gguf` file or a `.pth` file, alone or in one.

    The order of preference is that of transformers: safetensors before `.bin`, a single file
    before an index. Where a safetensors file is absent, its packed file is read, as if it were
    that. Raises ConversionError.
    """
    from converters.torch_files import TorchReader

    folder = Path(folder)
    if is_gguf(folder):
        from converters.gguf_files import GgufReader

        return GgufReader(folder)
    for single, suffixes, reader in (
        ("model.safetensors", SAFETENSORS, SafetensorsReader),
        ("pytorch_model.bin", TORCH, TorchReader),
    ):
        if (folder / single).is_file():
            return reader({single: folder / single}, None)
        packed = folder / packed_name(single)
        if suffixes == SAFETENSORS and packed.is_file():
            return PackedReader({single: packed}, None)
        index = folder / f"{single}.index.json"
        if index.is_file():
            files, text = _shards_of(index, suffixes)
            lies_packed = any(path.name.endswith(PACKED) for path in files.values())
            return (PackedReader if lies_packed else reader)(files, text)
    lone = lone_torch_file(folder)
    if lone is not None:
        return TorchReader({lone.name: lone}, None)
    raise ConversionError(
        f"no weights in {folder}: expected model.safetensors or pytorch_model.bin, "
        "or their .index.json with shards, or one .pth file"
    )


def _shards_of(index: Path, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], str]:
    """(shards by name, in order; text of the index). Raises ConversionError."""
    try:
        text = index.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConversionError(f"{index} cannot be read: {first_line(error)}") from None
    named = read_index(text, index)["weight_map"].values()
    for name in named:  # before set(), since a name may be unhashable
        inside(index.parent, name, index)
    files = shards(index.parent, sorted(set(named)), suffixes, index)
    if not files:
        raise ConversionError(f"{index} names no shards: fetch it again")
    if suffixes == SAFETENSORS and not any(path.is_file() for path in files.values()):
        packed = {k: path.with_name(packed_name(path.name)) for k, path in files.items()}
        files = packed if any(path.is_file() for path in packed.values()) else files
    for name, path in files.items():
        if not path.is_file():
            raise ConversionError(f"missing shard {shown(name)} named by {index}: fetch it")
    return files, text


class AnyWriter(Protocol):
    """Writes all tensors of a layout, in any order; then call `close` or `abandon`.

    As a context manager it closes on success and abandons on an error.
    """

    def __enter__(self) -> AnyWriter: ...
    def __exit__(self, kind: object, error: object, trace: object) -> None: ...
    def write(self, name: str, tensor: np.ndarray) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...


def open_writer(folder: str | Path, layout: Layout) -> AnyWriter:
    """A writer into `folder` for the layout's file format."""
    if layout.torch:
        from converters.torch_files import TorchWriter

        return TorchWriter(folder, layout)
    return Writer(folder, layout)


RECORD = "icp_run.json"  # the record of a run, in its output folder
REPORT = "report.html"  # the page made from it


def other_files(source: Path) -> list[Path]:
    """Files without weights, such as config and tokenizer; not the record and report of a run.

    Empty if `source` is a single file, whose folder is not a model folder.
    """
    if source.is_file():
        return []
    ours = (RECORD, REPORT) if (source / RECORD).is_file() else (RECORD,)
    return sorted(
        path
        for path in source.iterdir()
        if (path.is_file() or (path.is_symlink() and not path.is_dir()))
        and path.name not in ours
        and not holds_weights(path.name)
    )


def check_other_files(source: Path) -> None:
    """Raise ConversionError if one of `other_files` cannot be read, or made from a `.gguf`."""
    if is_gguf(source):
        from converters.gguf_side import side_files

        side_files(source)
    for path in other_files(source):
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError as error:
            raise ConversionError(
                f"{path} must be copied but cannot be read ({error.strerror}): "
                "make it readable, or move it away"
            ) from None


def copy_other_files(source: Path, target: Path) -> None:
    """Copy `other_files` to a folder; from a `.gguf` file write its config and tokenizer."""
    if is_gguf(source):
        from converters.gguf_side import write_side_files

        write_side_files(source, target)
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
    """Whether a file of a Hugging Face folder holds weights or is an index of them."""
    return name.endswith(WEIGHT_SUFFIXES) and not TOKENIZER_BIN.fullmatch(name)


def blocks_of_bytes(path: Path, size: int = 1 << 24) -> Iterator[bytes]:
    """Yield the bytes of a file, 16 MiB at a time, for hashing."""
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk
