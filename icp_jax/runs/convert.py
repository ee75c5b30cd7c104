"""Convert a Hugging Face folder to an Orbax checkpoint of the Flax tree and back, bit-exact.

A `.gguf` file becomes a Hugging Face folder.

The Orbax folder has `params/`, an ordinary Orbax checkpoint, and `hf/`, which the conversion back
needs: config, tokenizer, layout of the shards, and buffers.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from converters.files import (
    check_other_files,
    copy_other_files,
    is_gguf,
    lone_torch_file,
    open_writer,
)
from converters.gguf_config import DTYPE
from converters.gguf_files import GgufReader
from converters.gguf_side import write_side_files
from converters.layout import plan_layout
from converters.safetensors_files import Writer
from icp_jax.data.hub import resolve
from icp_jax.errors import InputError
from icp_jax.runs.export import Aside, copy_buffers, write_json
from icp_jax.runs.orbax import (
    BUFFERS,
    LAYOUT,
    PARAMS,
    SIDE,
    OrbaxReader,
    is_orbax,
    layout_record,
)
from icp_jax.runs.trees import save_tree
from icp_jax.streaming.finite import all_finite, not_finite
from icp_jax.streaming.source import FolderSource


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
    if is_orbax(folder):
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
    with closing(OrbaxReader(folder, out)) as reader:
        check_other_files(folder / SIDE)
        reader.load()
        copy_other_files(folder / SIDE, out)
        (out / LAYOUT).unlink()
        with open_writer(out, reader.layout) as writer:
            for name in reader.names():
                writer.write(name, reader.read(name))
