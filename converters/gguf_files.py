"""A model in GGUF as a Hugging Face checkpoint: torch's names and order, one tensor at a time.

Quantized tensors are dequantized when they are read, by the `gguf` package.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters import mapped
from converters.gguf_config import DTYPE, config_of
from converters.gguf_metadata import Gguf, Stored, read_gguf
from converters.gguf_names import role, torch_name
from converters.layout import Described, plan_layout
from converters.rules import ConversionError

SHARE = 1 << 22  # elements dequantized at a time


@dataclass(frozen=True)
class Place:
    """Where a tensor is, and its heads, whose rows llama.cpp has permuted; 0: not permuted."""

    stored: Stored
    heads: int


class GgufReader(Described):
    """Reads the tensors of a `.gguf` file, or of all parts of a split one, in one dtype.

    The export is safetensors. Raises ConversionError.
    """

    def __init__(self, path: Path, dtype: np.dtype = DTYPE):
        self.model = read_gguf(path)
        self.files = self.model.files
        self.config = config_of(self.model, dtype)
        self._dtype = dtype
        self._places: dict[str, Place] = {}
        for name, stored in self.model.tensors.items():
            _check_kind(name, stored)
            if (torch := torch_name(name)) is not None:
                self._places[torch] = Place(stored, _permuted(self.model, self.config, name))
        planned = {name: (dtype, place.stored.shape) for name, place in self._places.items()}
        self.layout = plan_layout(planned, {"format": "pt"})
        self._maps: dict[str, mmap.mmap] = {}
        for name, file_path in self.files.items():
            with file_path.open("rb") as file:
                self._maps[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def names(self) -> list[str]:
        return list(self._places)

    def read(self, name: str) -> np.ndarray:
        """The tensor, dequantized. Raises ConversionError if its values exceed the dtype."""
        place = self._places[name]
        shape, rows = place.stored.shape, self._rows(place.stored)
        out = np.empty((len(rows), shape[-1]), self._dtype)
        step = max(1, SHARE // max(1, shape[-1]))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            _fill(out[part], rows[part], place.stored.kind, name)
        return unpermuted(out.reshape(shape), place.heads)

    def _rows(self, stored: Stored) -> np.ndarray:
        """The bytes of a tensor, one row for each of its rows."""
        raw = np.frombuffer(self._maps[stored.file], np.uint8, stored.nbytes, stored.start)
        return raw.reshape(int(np.prod(stored.shape[:-1], dtype=np.int64)), -1)

    def fetch(self, names: Iterable[str]) -> None:
        """Prefetch these tensors in the background."""
        for name in names:
            s = self._places[name].stored
            mapped.fetch(self._maps[s.file], s.start, s.nbytes)

    def forget(self) -> None:
        """Free the memory of the file's parts read so far."""
        mapped.forget(self._maps.values())

    def close(self) -> None:
        self._maps.clear()


def _check_kind(name: str, stored: Stored) -> None:
    """Raise ConversionError for a type that the package cannot dequantize."""
    from gguf import GGMLQuantizationType, dequantize
    from gguf.constants import GGML_QUANT_SIZES

    kind = GGMLQuantizationType(stored.kind)
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:  # how the package says that it does not know the type
        raise ConversionError(
            f"tensor {name!r} has type {kind.name}, which the gguf package cannot dequantize"
        ) from None


def _fill(out: np.ndarray, rows: np.ndarray, kind: int, name: str) -> None:
    """Dequantize rows into `out`. Raises ConversionError for values beyond its dtype."""
    from gguf import GGMLQuantizationType, dequantize

    with np.errstate(all="ignore"):  # what is not finite is refused by whoever reads the model
        values = dequantize(rows, GGMLQuantizationType(kind))
        out[:] = values
    limit = float(np.finfo(np.float16).max) if out.dtype == np.float16 else np.inf
    peak = np.abs(values).max(initial=0)
    if limit < peak < np.inf and not np.isfinite(out).all():
        raise ConversionError(
            f"tensor {name!r} has values of {peak:.3g}, beyond float16: "
            "convert the file with --dtype bfloat16 or float32"
        )


def _permuted(model: Gguf, config: dict[str, Any], name: str) -> int:
    """The heads of a tensor that llama.cpp permutes: q and k of Llama, weights and biases."""
    if model.architecture != "llama":
        return 0
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    return int(config[heads[role(name)]]) if role(name) in heads else 0


def unpermuted(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Undo the permutation of the rows of each head: pairs side by side become two halves."""
    if not heads:
        return tensor
    if tensor.shape[0] % (2 * heads):
        raise ConversionError(f"a tensor of {tensor.shape[0]} rows does not have {heads} heads")
    split = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(tensor.shape)
