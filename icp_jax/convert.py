"""Hugging Face folder <-> Orbax checkpoint of the Flax tree, bit-exact both ways.

The Orbax folder holds `params/` (the tree, as any Orbax user restores it) and `hf/` (config,
tokenizer, the layout of the shards, and buffers that are no weights), which is what the way back
needs.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from converters import table_for
from converters.files import copy_other_files, lone_torch_file, open_checkpoint, open_writer
from converters.rules import check_shape, first_line, lookup
from converters.safetensors_files import DTYPE_NAMES, DTYPES, Entry, Layout, Writer, plan_layout
from converters.sam_names import config_of
from icp_jax.errors import InputError
from icp_jax.export import Aside, copy_buffers, write_json
from icp_jax.residency import FolderSource, read_config, resolve
from icp_jax.trees import read_tree, save_tree

PARAMS, SIDE, LAYOUT, BUFFERS = "params", "hf", "layout.json", "buffers"


def convert(src: str | Path, dst: str | Path) -> str:
    """Convert whichever way `src` calls for; returns what was written.

    Raises InputError or ConversionError; `dst` appears whole or not at all.
    """
    folder = Path(src).expanduser()
    if (folder / SIDE / LAYOUT).is_file():
        with Aside(dst) as aside:
            _to_hugging_face(folder, aside.path)
            lone = lone_torch_file(aside.path)
            aside.publish()
        return "Hugging Face folder" if lone is None else f"folder with {lone.name}"
    source = FolderSource(resolve(str(src)))
    with Aside(dst) as aside:
        _to_orbax(source, aside.path)
        aside.publish()
    source.close()
    return "Orbax checkpoint"


def _to_orbax(source: FolderSource, folder: Path) -> None:
    side = folder / SIDE
    side.mkdir()
    copy_other_files(source.folder, side)
    write_json(side / LAYOUT, layout_record(source.reader.layout))
    _save_buffers(source, side / BUFFERS)
    save_tree(folder / PARAMS, source.tree())


def _save_buffers(source: FolderSource, folder: Path) -> None:
    """What the tree has no place for, as safetensors of its own; nothing where there is none."""
    reader = source.reader
    names = set(reader.names()) - {rule.name for rule in source.placed}
    if not names:
        return
    folder.mkdir()
    layout = plan_layout({n: (reader.dtype(n), reader.shape(n)) for n in sorted(names)}, {})
    writer = Writer(folder, layout)
    copy_buffers(reader, source.placed, writer)
    writer.close()


def _to_hugging_face(folder: Path, out: Path) -> None:
    side = folder / SIDE
    layout = read_layout(json.loads((side / LAYOUT).read_text()))
    if layout.torch:
        config = config_of({name: entry.shape for name, entry in layout.entries.items()})
    else:
        config = read_config(side)
    placed = table_for(str(config.get("model_type"))).place(config, list(layout.entries))
    try:
        tree = read_tree(folder / PARAMS)
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise InputError(f"{folder} holds no Orbax checkpoint that can be read: {reason}") from None
    for path in sorted(side.iterdir()):
        if path.name not in (LAYOUT, BUFFERS):
            (out / path.name).write_bytes(path.read_bytes())
    writer = open_writer(out, layout)
    try:
        for rule in placed:
            tensor = rule.to_torch(np.asarray(lookup(tree, rule.path)))
            check_shape(rule, tensor.shape)
            writer.write(rule.name, tensor)
        if (side / BUFFERS).is_dir():
            copy_buffers(open_checkpoint(side / BUFFERS), placed, writer)
        writer.close()
    except BaseException:
        writer.abandon()
        raise


def layout_record(layout: Layout) -> dict[str, Any]:
    """A layout as plain values."""
    return {
        "headers": {k: base64.b64encode(v).decode() for k, v in layout.headers.items()},
        "entries": {
            name: [e.shard, DTYPE_NAMES[e.dtype], list(e.shape), e.start, e.nbytes]
            for name, e in layout.entries.items()
        },
        "index": layout.index,
        "torch": layout.torch,
    }


def read_layout(record: dict[str, Any]) -> Layout:
    """The inverse of `layout_record`."""
    return Layout(
        {k: base64.b64decode(v) for k, v in record["headers"].items()},
        {
            name: Entry(shard, DTYPES[dtype], tuple(shape), start, nbytes)
            for name, (shard, dtype, shape, start, nbytes) in record["entries"].items()
        },
        record["index"],
        record.get("torch", False),
    )
