"""Read the Orbax folders that `convert` writes, as the checkpoint that they were converted from.

`params/` is an ordinary Orbax checkpoint; `hf/` has config, tokenizer, the layout of the shards,
and buffers.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from converters import table_for
from converters.files import Reader, open_checkpoint
from converters.index import right_index
from converters.layout import (
    DTYPE_NAMES,
    DTYPES,
    Described,
    Entry,
    Layout,
    check_tensor,
    read_header,
)
from converters.names import SAFETENSORS, TORCH, shards
from converters.rules import ConversionError, Placed, check_shape, first_line, insert, lookup
from converters.sam_names import config_of
from icp_jax.errors import InputError
from icp_jax.runs.trees import read_tree
from icp_jax.streaming.model_config import read_config

PARAMS, SIDE, LAYOUT, BUFFERS = "params", "hf", "layout.json", "buffers"
Tree = dict[str, Any]


def is_orbax(folder: Path) -> bool:
    """Whether `convert` wrote this Orbax folder."""
    return (folder / SIDE / LAYOUT).is_file()


class OrbaxReader(Described):
    """The tensors of an Orbax folder by torch's names. Holds all of them in memory after `load`.

    out: the folder to write them to, in which the layout's names must lie. Raises InputError or
    ConversionError.
    """

    def __init__(self, folder: Path, out: Path):
        self.folder, side = folder, folder / SIDE
        self.layout = read_layout(side / LAYOUT, out)
        self.files = dict.fromkeys(self.layout.headers, folder / PARAMS)
        if self.layout.torch:
            config = config_of({name: entry.shape for name, entry in self.layout.entries.items()})
        else:
            config = read_config(side)
        placed = table_for(str(config.get("model_type"))).place(config, self.names())
        for rule in placed:
            check_shape(rule, self.shape(rule.name))
        self.placed = {rule.name: rule for rule in placed}
        self.tree: Tree = {}
        self._buffers: Reader | None = None

    def load(self) -> None:
        """Read the tree. Raises InputError if there is none."""
        try:
            self.tree = read_tree(self.folder / PARAMS)
        except (OSError, ValueError, KeyError) as error:
            reason = first_line(error)
            raise InputError(f"{self.folder} has no readable Orbax checkpoint: {reason}") from None
        if len(self.placed) < len(self.layout.entries):
            self._buffers = open_checkpoint(self.folder / SIDE / BUFFERS)

    def read(self, name: str) -> np.ndarray:
        """A tensor, in torch's order. Raises ConversionError if it differs from the layout."""
        rule = self.placed.get(name)
        if rule is None:
            assert self._buffers is not None
            return self._buffers.read(name)
        tensor = rule.to_torch(np.asarray(lookup(self.tree, rule.path)))
        check_shape(rule, tensor.shape)
        check_tensor(self.layout.entries[name], name, tensor)
        return np.ascontiguousarray(tensor).reshape(tensor.shape)

    def others(self) -> list[str]:
        """Leaves of the tree that are no tensor of the model."""
        known = {rule.path for rule in self.placed.values()}
        leaves = jax.tree_util.tree_leaves_with_path(self.tree)
        paths = (tuple(str(getattr(key, "key", key)) for key in path) for path, _ in leaves)
        return ["/".join(path) for path in paths if path not in known]

    def fetch(self, names: Iterable[str]) -> None:
        """Nothing: all is in memory."""

    def forget(self) -> None:
        """Nothing: all is in memory."""

    def close(self) -> None:
        """Drop the tree."""
        self.tree = {}
        if self._buffers is not None:
            self._buffers.close()


def tree_of(reader: Reader, placed: Iterable[Placed]) -> Tree:
    """The param tree of a checkpoint, as `convert` saves it, all in memory."""
    tree: Tree = {"embed": {}, "head": {}, "blocks": {}}
    for rule in placed:
        insert(tree, rule.path, rule.to_tree(reader.read(rule.name)))
    return tree


def layout_record(layout: Layout) -> dict[str, Any]:
    """A layout as JSON values."""
    return {
        "headers": {k: base64.b64encode(v).decode() for k, v in layout.headers.items()},
        "entries": {
            name: [e.shard, DTYPE_NAMES[e.dtype], list(e.shape), e.start, e.nbytes]
            for name, e in layout.entries.items()
        },
        "index": layout.index,
        "torch": layout.torch,
    }


def read_layout(path: Path, out: Path) -> Layout:
    """Read a layout written with `layout_record`, for files in `out`.

    Raises ConversionError for names outside `out`, and for entries that do not match the headers.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        headers = {k: base64.b64decode(v, validate=True) for k, v in record["headers"].items()}
        entries = {
            str(name): Entry(shard, DTYPES[dtype], tuple(map(int, shape)), int(start), int(nbytes))
            for name, (shard, dtype, shape, start, nbytes) in record["entries"].items()
        }
        index, torch = record["index"], bool(record.get("torch", False))
        if not (index is None or isinstance(index, str)) or (torch and len(headers) != 1):
            raise ValueError("invalid index or number of files")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConversionError(f"{path} is not a layout of icp-jax convert: {error!r}") from None
    shards(out, headers, TORCH if torch else SAFETENSORS, path)
    layout = Layout(headers, entries, index, torch)
    if torch:
        _check_file(layout, path)
    else:
        found = {n: e for shard, raw in headers.items() for n, e in read_header(shard, raw).items()}
        if found != entries:
            raise ConversionError(f"{path}: the entries do not match the headers; convert again")
        right_index(layout)
    return layout


def _check_file(layout: Layout, path: Path) -> None:
    for name, e in layout.entries.items():
        if (
            e.shard not in layout.headers
            or min(e.shape, default=0) < 0
            or e.nbytes != math.prod(e.shape) * e.dtype.itemsize
        ):
            raise ConversionError(f"{path}: tensor {name!r} does not match its file; convert again")
