"""Small pruned folders to pack, and files that are compared byte for byte."""

import json
from pathlib import Path

import numpy as np
from conftest import write_opt

from converters.files import open_checkpoint
from converters.packed_files import CHECKSUM, DESCRIPTION, digest
from converters.safetensors_files import Writer

NAME = "model.packed.safetensors"


def zeroed(rng, shape, sparsity, pattern=None):
    """Normal weights with an exact share of zeros, or an n:m pattern of the last axis."""
    w = rng.normal(size=shape)
    if pattern is None:
        w.flat[rng.permutation(w.size)[: round(sparsity * w.size)]] = 0
        return w
    n, m = pattern
    places = rng.random((*shape[:-1], shape[-1] // m, m)).argsort(axis=-1)
    return np.where((places < n).reshape(shape), w, 0)


def write_pruned(folder: Path, dtype=np.float16, sparsity=0.8, pattern=None, **options) -> Path:
    """A random OPT whose blocks' matrices have zeros, as a Hugging Face folder."""
    write_opt(folder, dtype, **options)
    reader = open_checkpoint(folder)
    layout, tensors = reader.layout, {n: np.array(reader.read(n)) for n in reader.names()}
    reader.close()
    rng = np.random.default_rng(7)
    with Writer(folder, layout) as writer:
        for name, w in tensors.items():
            if ".layers." in name and w.ndim == 2:
                w = (0.1 * zeroed(rng, w.shape, sparsity, pattern)).astype(w.dtype)
            writer.write(name, w)
    (folder / "generation_config.json").write_text("{}\n")
    return folder


def files(folder: Path) -> dict[str, bytes | None]:
    """Every file's bytes by its path in the folder; None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def redescribed(folder: Path, change) -> None:
    """The packed file of a folder with a changed description, its checksum right.

    change: changes the description in place, or returns another.
    """
    raw = (folder / NAME).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    told = json.loads(header["__metadata__"][DESCRIPTION])
    text = json.dumps(change(told) or told, separators=(",", ":"))
    header["__metadata__"] = {DESCRIPTION: text, CHECKSUM: digest(text.encode())}
    new = json.dumps(header, separators=(",", ":")).encode()
    (folder / NAME).write_bytes(len(new).to_bytes(8, "little") + new + raw[start:])
