"""Masks of a pruned folder's zeros, as packed bits, for training in torch or in JAX."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from converters.layout import Planned, file_header, one_file
from converters.rules import ConversionError, Placed, insert
from converters.safetensors_files import SafetensorsReader, Writer
from icp_jax.data.hub import resolve
from icp_jax.errors import InputError
from icp_jax.runs.export import Aside
from icp_jax.runs.packed import is_pruned
from icp_jax.streaming.source import FolderSource

KINDS = ("torch", "flax")  # each a file `<kind>.safetensors`
COLUMNS = "columns"  # of the metadata: the length of each mask's rows, as JSON


def save_masks(model: str | Path, out: str | Path) -> dict[str, Any]:
    """Write the masks of the prunable linears of a folder to a new folder.

    `torch.safetensors` has them by torch's names, `[out, in]`; `flax.safetensors` by the paths of
    the param tree, such as `blocks/0/fc1/kernel`, `[in, out]`. A bit is 1 where the weight is not
    zero; each row is packed into bytes, lowest bit first. Returns the counts as JSON values.
    Raises InputError or ConversionError.
    """
    with closing(FolderSource(resolve(str(model)))) as source, Aside(out) as aside:
        linears = {spec.name for spec in source.family.linears}
        rules = [rule for rule in source.placed if is_pruned(rule, linears)]
        writers = {kind: _writer(aside.path, kind, rules) for kind in KINDS}
        zeros = 0
        for rule in rules:
            keep = source.reader.read(rule.name) != 0
            source.forget()
            zeros += keep.size - int(np.count_nonzero(keep))
            writers["torch"].write(_name(rule, "torch"), packed_rows(keep))
            writers["flax"].write(_name(rule, "flax"), packed_rows(keep.T))
        for writer in writers.values():
            writer.close()
        aside.publish()
    size = sum(int(np.prod(rule.shape)) for rule in rules)
    return {"out": str(out), "masks": len(rules), "zeros": zeros, "size": size}


def load_masks(folder: str | Path, kind: str = "flax") -> dict[str, Any]:
    """Read masks that `save_masks` wrote, as booleans: True where the weight is kept.

    kind: flax, a tree like a model's params, which `keep_zeros` takes; or torch, a dict by torch's
    names. Raises InputError or ConversionError.
    """
    if kind not in KINDS:
        raise InputError(f"kind must be {' or '.join(KINDS)}, got {kind!r}")
    path = Path(folder) / f"{kind}.safetensors"
    if not path.is_file():
        raise InputError(f"{path} is missing: write the masks by icp-jax masks")
    columns = _columns(path)
    found: dict[str, Any] = {}
    with closing(SafetensorsReader({path.name: path}, None)) as reader:
        for name in reader.names():
            bits, count = reader.read(name), columns.get(name)
            if bits.dtype != np.uint8 or bits.ndim != 2 or not isinstance(count, int):
                raise ConversionError(f"{path}: {name!r} is not a mask: write the masks again")
            if bits.shape[1] != -(-count // 8):
                raise ConversionError(f"{path}: {name!r} does not have {count} columns")
            keep = unpacked_rows(bits, count)
            insert(found, tuple(name.split("/")) if kind == "flax" else (name,), keep)
    return found


def packed_rows(keep: Bool[np.ndarray, "r c"]) -> UInt8[np.ndarray, "r b"]:
    """Each row of a mask as bytes, lowest bit first."""
    return np.packbits(keep, axis=1, bitorder="little")


def unpacked_rows(bits: UInt8[np.ndarray, "r b"], columns: int) -> Bool[np.ndarray, "r c"]:
    """Invert `packed_rows`."""
    return np.unpackbits(bits, axis=1, count=columns, bitorder="little").view(bool)


def _name(rule: Placed, kind: str) -> str:
    return rule.name if kind == "torch" else "/".join(rule.path)


def _writer(folder: Path, kind: str, rules: list[Placed]) -> Writer:
    shapes = {_name(r, kind): r.shape if kind == "torch" else r.shape[::-1] for r in rules}
    columns = json.dumps({name: shape[1] for name, shape in shapes.items()})
    byte: np.dtype = np.dtype(np.uint8)
    planned: Planned = {name: (byte, (r, -(-c // 8))) for name, (r, c) in shapes.items()}
    return Writer(folder, one_file(f"{kind}.safetensors", planned, {COLUMNS: columns}))


def _columns(path: Path) -> dict[str, Any]:
    """The length of each mask's rows. Raises ConversionError."""
    raw, _ = file_header(path, path.name)
    try:
        found = json.loads(json.loads(raw[8:])["__metadata__"][COLUMNS])
        if not isinstance(found, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ConversionError(f"{path} holds no masks: write them by icp-jax masks") from None
    return found
