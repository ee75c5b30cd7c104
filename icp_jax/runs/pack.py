"""Pack a pruned folder, so that its zeros take one bit or less, and unpack it again, bit-exact."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from converters.files import Reader, open_checkpoint
from converters.layout import Entry
from converters.names import create
from converters.packed_files import packed_name
from converters.packed_forms import PLAIN
from converters.packed_reader import PackedReader
from converters.packed_write import Packing, pack_file, unpack_file
from converters.safetensors_files import SafetensorsReader
from icp_jax.data.hub import resolve
from icp_jax.errors import InputError
from icp_jax.runs.convert import LAYOUT, SIDE
from icp_jax.runs.export import Aside


def pack(model: str | Path, out: str | Path, bits: int | None = None) -> dict[str, Any]:
    """Pack the pruned weights of a Hugging Face folder of safetensors into a new folder.

    Each matrix is written as a bitmask and its non-zeros, or by the n:m pattern of its groups, or
    as it is: whichever is smallest. All other files are copied. Every command reads the result.
    bits: 4 or 8, of integers in place of the non-zeros, with a scale for each group of inputs:
    exact if the weights lie on such grids, as after a run with `quant.bits`; otherwise they are
    rounded, and `unpack` gives the rounded ones. Returns the sizes as JSON values: bytes,
    packed_bytes and ratio of the weight files; the same and bits_per_weight of the packed
    matrices, under `packed`; and for each of them, under `layers`, with its form; `rounded`:
    whether any was rounded. Raises InputError or ConversionError.
    """
    if bits not in (None, 4, 8):
        raise InputError(f"bits must be 4 or 8, got {bits!r}")
    folder = resolve(str(model))
    with closing(_opened(folder)) as reader:
        taken = [name for name in map(packed_name, reader.files) if (folder / name).exists()]
        if taken:
            raise InputError(f"{folder / taken[0]} has a reserved name: move it away")
        others = _files(folder, reader.files)
        packings: dict[str, Packing] = {}
        with Aside(out) as aside:
            _copy(folder, others, aside.path)
            for shard in reader.files:
                packings |= pack_file(reader, shard, aside.path, bits)
            record = _record(reader, packings, aside.path)
            aside.publish()
            return {"out": str(out), **record}


def unpack(packed: str | Path, out: str | Path) -> dict[str, Any]:
    """Write the folder that `pack` was given, byte for byte, into a new folder.

    Returns the sizes as JSON values. Raises InputError or ConversionError; `out` is complete or
    absent.
    """
    folder = resolve(str(packed))
    with closing(open_checkpoint(folder)) as reader:
        if not isinstance(reader, PackedReader):
            raise InputError(f"{folder} is not packed: give a folder that icp-jax pack wrote")
        others = _files(folder, map(packed_name, reader.files))
        with Aside(out) as aside:
            _copy(folder, others, aside.path)
            for shard, file in reader.packed.items():
                unpack_file(file, shard, aside.path)
                reader.forget()
            sizes = packed_sizes(reader) or {}
            aside.publish()
            return {"out": str(out), **sizes}


def packed_sizes(reader: Reader) -> dict[str, Any] | None:
    """The bytes of the weight files of a packed folder and of those it was made from, as JSON
    values; None for any other reader."""
    if not isinstance(reader, PackedReader):
        return None
    layout = reader.layout
    plain = sum(map(len, layout.headers.values())) + sum(e.nbytes for e in layout.entries.values())
    return _sizes(plain, sum(path.stat().st_size for path in reader.files.values()))


def _opened(folder: Path) -> SafetensorsReader:
    """The reader of a folder of safetensors. Raises InputError for any other."""
    if (folder / SIDE / LAYOUT).is_file():
        raise InputError(
            f"{folder} is an Orbax checkpoint, which is compressed already: convert it to a "
            "Hugging Face folder first, by icp-jax convert"
        )
    reader: Reader = open_checkpoint(folder)
    if isinstance(reader, SafetensorsReader):
        return reader
    reader.close()
    if isinstance(reader, PackedReader):
        raise InputError(f"{folder} is packed already: use it as it is, or run icp-jax unpack")
    raise InputError(
        f"{folder} has no safetensors, which is what pack reads: save it as a Hugging Face folder"
    )


def _files(folder: Path, without: Iterable[str]) -> list[Path]:
    """All files below a folder, relative to it, and empty folders; links are followed to files.

    Raises InputError for a broken link, and for what is neither file nor folder.
    """
    weights = {folder / name for name in without}
    found = []
    for path in sorted(folder.rglob("*")):
        if path in weights or (path.is_dir() and any(path.iterdir())):
            continue
        if not path.is_dir() and not path.is_file():
            raise InputError(f"{path} cannot be copied, since it is no file: move it away")
        found.append(path.relative_to(folder))
    return found


def _copy(folder: Path, names: list[Path], target: Path) -> None:
    for name in names:
        if (folder / name).is_dir():
            (target / name).mkdir(parents=True)
            continue
        with (folder / name).open("rb") as old, create(target, str(name), folder) as new:
            shutil.copyfileobj(old, new)


def _record(reader: SafetensorsReader, packings: dict[str, Packing], out: Path) -> dict[str, Any]:
    """The sizes of a packed folder as JSON values."""
    layers = [
        _layer(name, reader.layout.entries[name], packing)
        for name, packing in packings.items()
        if packing.form != PLAIN
    ]
    files = (
        sum(path.stat().st_size for path in reader.files.values()),
        sum((out / packed_name(shard)).stat().st_size for shard in reader.files),
    )
    sums = [sum(layer[key] for layer in layers) for key in ("bytes", "packed_bytes", "size")]
    rounded = not all(packing.exact for packing in packings.values())
    return {**_sizes(*files), "packed": _sizes(*sums), "rounded": rounded, "layers": layers}


def _layer(name: str, entry: Entry, packing: Packing) -> dict[str, Any]:
    size = entry.nbytes // entry.dtype.itemsize
    zeros = size - packing.nonzeros
    return {
        "name": name,
        "form": packing.form,
        "rounded": not packing.exact,
        "dtype": str(entry.dtype),
        "zeros": zeros,
        "sparsity": zeros / size,
        **_sizes(entry.nbytes, packing.nbytes(), size),
    }


def _sizes(plain: int, packed: int, size: int = 0) -> dict[str, Any]:
    """size: number of weights; 0: not told."""
    found: dict[str, Any] = {"bytes": plain, "packed_bytes": packed}
    found["ratio"] = plain / packed if packed else 1.0
    if size:
        found |= {"size": size, "bits_per_weight": 8 * packed / size}
    return found
