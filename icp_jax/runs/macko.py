"""Export for MACKO-SpMV, a CUDA kernel for products of sparse float16 matrices and a vector.

The file is what its `util_compress_llm.py` writes: a state dict in which each linear's weight is
replaced by `c_0` to `c_4`, see `compressed`.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Int32, Shaped, UInt8

from converters.files import check_other_files, copy_other_files
from converters.names import create
from icp_jax.data.hub import resolve
from icp_jax.errors import InputError
from icp_jax.runs.export import Aside
from icp_jax.runs.packed import is_pruned
from icp_jax.streaming.source import FolderSource

FILE = "macko.pt"
LONGEST = 15  # zeros that a delta can skip
ALIGNED = 8  # entries that the kernel reads at a time


class Compressed(NamedTuple):
    """A matrix in MACKO's layout, row by row; each row's entries end where the next begin."""

    values: Float16[np.ndarray, "n"]  # non-zeros, and a 0 where a gap is longer than 15
    deltas: UInt8[np.ndarray, "n/2"]  # zeros skipped before each entry, two a byte, low bits first
    row_indices: Int32[np.ndarray, "rows+1"]  # the first entry of each row
    rows: int
    columns: int


def compressed(weight: Shaped[np.ndarray, "rows columns"]) -> Compressed:
    """A matrix, rounded to float16, in MACKO's layout."""
    narrow = np.asarray(weight).astype(np.float16)
    rows, columns = narrow.shape
    row, column = np.nonzero(narrow)
    first = np.ones(len(row), bool)
    first[1:] = row[1:] != row[:-1]
    before = np.where(first, -1, np.roll(column, 1))
    gap = column - before - 1
    fillers = gap // (LONGEST + 1)  # zeros that are stored to bridge the gap
    last = np.cumsum(fillers + 1) - 1  # the place of each non-zero among the entries
    count = int(last[-1]) + 1 if len(last) else 0
    values = np.zeros(-(-count // ALIGNED) * ALIGNED, np.float16)
    deltas = np.zeros(len(values), np.uint8)
    deltas[:count] = LONGEST
    values[last], deltas[last] = narrow[row, column], gap % (LONGEST + 1)
    entries = np.bincount(row, fillers + 1, minlength=rows).astype(np.int64)
    indices = np.concatenate([[0], np.cumsum(entries)]).astype(np.int32)
    return Compressed(values, deltas[0::2] | deltas[1::2] << 4, indices, rows, columns)


def save_macko(model: str | Path, out: str | Path) -> dict[str, Any]:
    """Write a pruned Llama or Mistral for MACKO to a new folder: `macko.pt`, config and tokenizer.

    Weights are rounded to float16. The whole model must fit into memory, as torch saves it at
    once. Returns the sizes as JSON values. Raises InputError or ConversionError.
    """
    torch = _torch()
    with closing(FolderSource(resolve(str(model)))) as source, Aside(out) as aside:
        kernels = _kernels(source)
        check_other_files(source.folder)
        copy_other_files(source.folder, aside.path)
        state: dict[str, Any] = {}
        exact, plain, small = True, 0, 0
        for name in source.reader.names():
            tensor = source.reader.read(name)
            if name not in kernels:
                state[name] = _as_torch(tensor)
                continue
            found = _checked(name, tensor)
            exact = exact and np.array_equal(tensor.astype(np.float16).astype(tensor.dtype), tensor)
            base = name.removesuffix("weight")
            arrays = [torch.from_numpy(array) for array in found[:3]]
            state |= {f"{base}c_{i}": part for i, part in enumerate([*arrays, *found[3:]])}
            plain += tensor.nbytes
            small += sum(array.nbytes for array in found[:3])
            source.forget()
        with create(aside.path, FILE) as file:
            torch.save(state, file)
        aside.publish()
    sizes = {"bytes": plain, "packed_bytes": small, "ratio": plain / small}
    return {"out": str(out), "file": FILE, "rounded": not exact, "packed": sizes}


def _checked(name: str, tensor: np.ndarray) -> Compressed:
    """A compressed kernel. Raises InputError for weights beyond float16."""
    with np.errstate(over="ignore"):
        found = compressed(tensor)
    if not np.isfinite(found.values).all():
        raise InputError(f"tensor {name!r} has values beyond float16, which MACKO needs")
    return found


def _kernels(source: FolderSource) -> set[str]:
    """The names of the linears' weights. Raises InputError for models that MACKO cannot run."""
    linears = {spec.name for spec in source.family.linears}
    names = {rule.name for rule in source.placed if is_pruned(rule, linears)}
    biases = {name.removesuffix("weight") + "bias" for name in names}
    theirs = all(".self_attn." in name or ".mlp." in name for name in names)
    if not theirs or not biases.isdisjoint(source.reader.names()):
        kind = source.config["model_type"]
        raise InputError(
            f"--format macko is for Llama and Mistral without biases, got {kind!r}: leave it out"
        )
    return names


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(
            "--format macko needs torch to write its file: pip install 'icp-jax[torch]'"
        ) from None
    return torch


def _as_torch(tensor: np.ndarray) -> Any:
    from converters.torch_files import to_torch

    return to_torch(np.array(tensor))
