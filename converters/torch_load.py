"""What a file that torch saved holds: plain tensors by name, and never code."""

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

SAM2 = "image_encoder.trunk."  # how the names of SAM 2's encoder begin


def load(torch: Any, path: Path) -> tuple[Any, bool]:
    """What a file holds, and whether it is mapped rather than read. Raises ConversionError."""
    if what := foreign(path):
        raise ConversionError(f"{path} {what}")
    options = {"map_location": "cpu", "weights_only": True}
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is an error next
            try:
                return torch.load(path, mmap=True, **options), True
            except RuntimeError:  # files from before the zip format cannot be mapped
                return torch.load(path, **options), False
    except MemoryError:
        raise
    except Exception as error:  # of many kinds; torch's own text advises to turn the check off
        raise ConversionError(f"{path} cannot be read: it {_refused(path, error)}") from None


def _refused(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        saved = file.read(2).startswith((b"PK", b"\x80"))  # a zip file, or a pickle
    if isinstance(error, pickle.UnpicklingError) and saved:
        return "holds objects that may be code, which are never loaded; save the state dict alone"
    return f"is damaged, or no file that torch saved ({type(error).__name__}): fetch it again"


def state_dict(torch: Any, path: Path, state: Any) -> Mapping[str, Any]:
    """The state dict itself. Raises ConversionError, by name for SAM 2, for anything else."""
    inner = state.get("model", state) if isinstance(state, Mapping) else state
    if isinstance(inner, Mapping) and any(str(name).startswith(SAM2) for name in inner):
        raise ConversionError(
            f"{path} is a SAM 2 checkpoint, which is not supported: SAM ViT-B, L and H are"
        )
    if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
        raise ConversionError(f"{path} is not a flat dict of tensors: save the state dict alone")
    for name, tensor in state.items():
        if not isinstance(name, str) or tensor.layout != torch.strided or tensor.is_meta:
            raise ConversionError(f"{path}: {shown(name)} is not the name of a plain tensor")
    return state


def dtype_of(name: str, tensor: Any) -> np.dtype:
    """A tensor's dtype in NumPy. Raises ConversionError for one that safetensors does not have."""
    kind = str(tensor.dtype).removeprefix("torch.")
    known = {str(dtype): dtype for dtype in DTYPE_NAMES}
    if kind not in known:
        raise ConversionError(f"tensor {name!r} has dtype {kind}, which is not supported")
    return known[kind]
