"""Load a file saved by torch: plain tensors by name, never code."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.layout import DTYPE_NAMES
from converters.names import foreign, shown
from converters.rules import ConversionError

SAM2 = "image_encoder.trunk."  # prefix of SAM 2's encoder


def load(torch: Any, path: Path) -> tuple[Any, bool]:
    """(the file's content, whether it is memory-mapped). Raises ConversionError."""
    if what := foreign(path):
        raise ConversionError(f"{path} {what}")
    options = {"map_location": "cpu", "weights_only": True}
    try:
        with warnings.catch_warnings(action="ignore"):  # the same problem raises below
            try:
                return torch.load(path, mmap=True, **options), True
            except RuntimeError:  # files from before the zip format cannot be mapped
                return torch.load(path, **options), False
    except MemoryError:
        raise
    except Exception as error:  # of many types; torch's text advises to disable the check
        raise ConversionError(f"{path} cannot be read: it {_refused(path, error)}") from None


def _refused(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        saved = file.read(2).startswith((b"PK", b"\x80"))  # a zip file, or a pickle
    if isinstance(error, pickle.UnpicklingError) and saved:
        return "holds objects that may be code, which are never loaded: save only the state dict"
    return f"is damaged, or not a torch file ({type(error).__name__}): fetch it again"


def state_dict(torch: Any, path: Path, state: Any) -> Mapping[str, Any]:
    """Check that `state` is a state dict. Raises ConversionError, with a hint for SAM 2."""
    inner = state.get("model", state) if isinstance(state, Mapping) else state
    if isinstance(inner, Mapping) and any(str(name).startswith(SAM2) for name in inner):
        raise ConversionError(
            f"{path} is a SAM 2 checkpoint, which is not supported: use SAM ViT-B, L or H"
        )
    if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
        raise ConversionError(f"{path} is not a flat dict of tensors: save only the state dict")
    for name, tensor in state.items():
        if not isinstance(name, str) or tensor.layout != torch.strided or tensor.is_meta:
            raise ConversionError(
                f"{path}: {shown(name)} is not a dense tensor with a name: save plain tensors"
            )
    return state


def dtype_of(name: str, tensor: Any) -> np.dtype:
    """The NumPy dtype of a tensor. Raises ConversionError if safetensors does not support it."""
    kind = str(tensor.dtype).removeprefix("torch.")
    known = {str(dtype): dtype for dtype in DTYPE_NAMES}
    if kind not in known:
        raise ConversionError(
            f"tensor {name!r} has dtype {kind}, which is not supported; "
            f"supported: {', '.join(known)}"
        )
    return known[kind]
