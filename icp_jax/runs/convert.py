"""Convert a Hugging Face folder to an Orbax checkpoint of the Flax tree and back, bit-exact.

A `.gguf` file becomes a Hugging Face folder.

The Orbax folder has `params/`, an ordinary Orbax checkpoint, and `hf/`, which the conversion back
needs: config, tokenizer, layout of the shards, and buffers.
"""

from __future__ import annotations

import base64
import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from converters import table_for
from converters.files import (
    check_other_files,
    copy_other_files,
    is_gguf,
    lone_torch_file,
    open_checkpoint,
    open_writer,
)
from converters.gguf_config import DTYPE
from converters.gguf_files import GgufReader
from converters.gguf_side import write_side_files
from converters.index import right_index
from converters.layout import DTYPE_NAMES, DTYPES, Entry, Layout, plan_layout, read_header
from converters.names import SAFETENSORS, TORCH, shards
from converters.rules import ConversionError, check_shape, first_line, lookup
from converters.safetensors_files import Writer
from converters.sam_names import config_of
from icp_jax.data.hub import resolve
from icp_jax.errors import InputError
from icp_jax.runs.export import Aside, copy_buffers, write_json
from icp_jax.runs.trees import read_tree, save_tree
from icp_jax.streaming.finite import all_finite, not_finite
from icp_jax.streaming.model_config import read_config
from icp_jax.streaming.source import FolderSource

PARAMS, SIDE, LAYOUT, BUFFERS = "params", "hf", "layout.json", "buffers"


def convert(src: str | Path, dst: str | Path, dtype: str | None = None) -> str:
    """Convert a Hugging Face folder, or a folder that this function wrote, to the other format.

    A `.gguf` file is converted to a Hugging Face folder. dtype: float16, bfloat16 or float32, of
    that folder. Default: float16. Returns the name of the written format. `dst` is complete or
    absent. Raises InputError or ConversionError.
    """
    folder = Path(src).expanduser()
    if is_gguf(folder):
        return _from_gguf(folder, dst, np.dtype(dtype or DTYPE))
    if dtype is not None:
        raise InputError("--dtype is for a .gguf file: other conversions keep the dtypes")
    if (folder / SIDE / LAYOUT).is_file():
        with Aside(dst) as aside:
            _to_hugging_face(folder, aside.path)
            lone = lone_torch_file(aside.path)
            aside.publish()
        return "Hugging Face folder" if lone is None else f"folder with {lone.name}"
    with closing(FolderSource(resolve(str(src)))) as source:
        check_other_files(source.folder)
        if (source.folder / LAYOUT).exists():
            raise InputError(f"{source.folder / LAYOUT} has a reserved file name: rename it")
        with Aside(dst) as aside:
            _to_orbax(source, aside.path)
            aside.publish()
    return "Orbax checkpoint"


def _from_gguf(path: Path, dst: str | Path, dtype: np.dtype) -> str:
    """Write a Hugging Face folder, one tensor in memory at a time."""
    with closing(FolderSource(path, GgufReader(path, dtype))) as source, Aside(dst) as aside:
        write_side_files(path, aside.path, dtype)
        with open_writer(aside.path, source.reader.layout) as writer:
            for name in source.reader.names():
                tensor = source.reader.read(name)
                if not all_finite(tensor):
                    raise not_finite(name)
                writer.write(name, tensor)
                source.reader.forget()
        aside.publish()
    return "Hugging Face folder"


def _to_orbax(source: FolderSource, folder: Path) -> None:
    side = folder / SIDE
    side.mkdir()
    copy_other_files(source.folder, side)
    write_json(side / LAYOUT, layout_record(source.reader.layout))
    _save_buffers(source, side / BUFFERS)
    save_tree(folder / PARAMS, source.tree())


def _save_buffers(source: FolderSource, folder: Path) -> None:
    """Write the tensors outside the param tree as safetensors; nothing if there are none."""
    reader = source.reader
    names = set(reader.names()) - {rule.name for rule in source.placed}
    if not names:
        return
    folder.mkdir()
    layout = plan_layout({n: (reader.dtype(n), reader.shape(n)) for n in sorted(names)}, {})
    with Writer(folder, layout) as writer:
        copy_buffers(reader, source.placed, writer)


def _to_hugging_face(folder: Path, out: Path) -> None:
    side = folder / SIDE
    layout = read_layout(side / LAYOUT, out)
    if layout.torch:
        config = config_of({name: entry.shape for name, entry in layout.entries.items()})
    else:
        config = read_config(side)
    placed = table_for(str(config.get("model_type"))).place(config, list(layout.entries))
    for rule in placed:
        check_shape(rule, layout.entries[rule.name].shape)
    check_other_files(side)
    try:
        tree = read_tree(folder / PARAMS)
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise InputError(f"{folder} has no readable Orbax checkpoint: {reason}") from None
    copy_other_files(side, out)
    (out / LAYOUT).unlink()
    with open_writer(out, layout) as writer:
        for rule in placed:
            tensor = rule.to_torch(np.asarray(lookup(tree, rule.path)))
            check_shape(rule, tensor.shape)
            writer.write(rule.name, tensor)
        if len(placed) < len(layout.entries):
            with closing(open_checkpoint(side / BUFFERS)) as reader:
                copy_buffers(reader, placed, writer)


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
