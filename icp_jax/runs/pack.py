"""Pack a pruned folder, so that its zeros take one bit or less, and unpack it again, bit-exact."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from converters.files import Reader, open_checkpoint
from converters.layout import Entry
from converters.packed_files import packed_name
from converters.packed_forms import PLAIN
from converters.packed_reader import PackedReader
from converters.packed_write import Packing, pack_file, unpack_file
from converters.safetensors_files import SafetensorsReader
from icp_jax.data.hub import resolve
from icp_jax.errors import InputError
from icp_jax.runs import pack_orbax
from icp_jax.runs.export import Aside
from icp_jax.runs.orbax import PARAMS, OrbaxReader, is_orbax


def pack(model: str | Path, out: str | Path, bits: int | None = None) -> dict[str, Any]:
    """Pack the pruned weights of a Hugging Face folder of safetensors into a new folder.

    The folder may also be an Orbax checkpoint that `icp-jax convert` wrote; its tree is then held
    in memory. Each matrix is written as a bitmask and its non-zeros, or by the n:m pattern of its
    groups, or as it is: whichever is smallest. All other files are copied. Every command reads the
    result.
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
        names = _files(folder, () if isinstance(reader, OrbaxReader) else reader.files)
        packings: dict[str, Packing] = {}
        with Aside(out) as aside:
            if isinstance(reader, OrbaxReader):
                pack_orbax.copy_packed(folder, names, reader, aside.path)
            else:
                pack_orbax.copy(folder, [(name, name) for name in names], aside.path)
            for shard in reader.files:
                packings |= pack_file(reader, shard, aside.path, bits)
            record = _record(reader, packings, aside.path)
            aside.publish()
            return {"out": str(out), **record}


def unpack(packed: str | Path, out: str | Path) -> dict[str, Any]:
    """Write the folder that `pack` was given, byte for byte, into a new folder.

    Of an Orbax checkpoint, the tree has the same bits; Orbax's files of arrays are written anew.
    Returns the sizes as JSON values. Raises InputError or ConversionError; `out` is complete or
    absent.
    """
    folder = resolve(str(packed))
    with closing(open_checkpoint(folder)) as reader:
        if not isinstance(reader, PackedReader):
            raise InputError(f"{folder} is not packed: give a folder that icp-jax pack wrote")
        names = _files(folder, map(packed_name, reader.files))
        with Aside(out) as aside:
            if pack_orbax.is_packed_orbax(folder):
                pack_orbax.unpack_all(folder, names, reader, aside.path)
                written = [aside.path / PARAMS]
            else:
                pack_orbax.copy(folder, [(name, name) for name in names], aside.path)
                for shard, file in reader.packed.items():
                    unpack_file(file, shard, aside.path)
                    reader.forget()
                written = [aside.path / shard for shard in reader.packed]
            sizes = _sizes(_bytes(written), _bytes(reader.files.values()))
            aside.publish()
            return {"out": str(out), **sizes}


def packed_sizes(reader: Reader) -> dict[str, Any] | None:
    """The bytes of the weight files of a packed folder and of those it was made from, as JSON
    values; None for any other reader."""
    if not isinstance(reader, PackedReader):
        return None
    layout = reader.layout
    plain = sum(map(len, layout.headers.values())) + sum(e.nbytes for e in layout.entries.values())
    return _sizes(plain, _bytes(reader.files.values()))


def _bytes(paths: Iterable[Path]) -> int:
    return sum(map(pack_orbax.nbytes, paths))


def _opened(folder: Path) -> SafetensorsReader | OrbaxReader:
    """The reader of a folder of safetensors, or of Orbax's. Raises InputError for any other."""
    if is_orbax(folder):
        return pack_orbax.open_orbax(folder)
    reader: Reader = open_checkpoint(folder)
    kept = folder / pack_orbax.KEPT
    if isinstance(reader, SafetensorsReader) and not kept.exists():
        return reader
    reader.close()
    if isinstance(reader, SafetensorsReader):
        raise InputError(f"{kept} has a reserved name: move it away")
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


def _record(reader: Reader, packings: dict[str, Packing], out: Path) -> dict[str, Any]:
    """The sizes of a packed folder as JSON values."""
    layers = [
        _layer(name, reader.layout.entries[name], packing)
        for name, packing in packings.items()
        if packing.form != PLAIN
    ]
    packed = (out / packed_name(shard) for shard in reader.files)
    files = (_bytes({*reader.files.values()}), _bytes(packed))
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
