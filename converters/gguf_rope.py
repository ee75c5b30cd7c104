"""The scaling of rotary embeddings in GGUF, as `rope_scaling` of a Hugging Face config.

Linear and YaRN are numbers in the metadata. Llama 3's scaling is a tensor: the factor by which each
frequency is divided. Its settings are found again from the tensor.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from converters.gguf_metadata import Gguf
from converters.gguf_names import FREQUENCIES
from converters.rules import ConversionError

CONTEXT = 8192  # Llama 3's first context; the other settings are found relative to it
LOW, HIGH = 1.0, 4.0  # Llama 3's own settings, where the tensor leaves them open
CLOSE = 1e-3  # relative error of a factor


def rope_scaling(model: Gguf, theta: float, dim: int) -> dict[str, Any] | None:
    """`rope_scaling` of a config; None if there is none. Raises ConversionError."""
    if FREQUENCIES in model.tensors:
        return _llama3(model, theta, dim)
    kind, factor = model.own("rope.scaling.type"), model.own("rope.scaling.factor")
    if kind is None and (old := model.own("rope.scale_linear")):
        kind, factor = "linear", old
    if kind in (None, "none") or not factor:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind == "yarn":
        return _yarn(model, float(factor))
    raise ConversionError(
        f"{model.first}: rope scaling {str(kind)[:60]!r} is not supported; supported: linear, yarn"
    )


def _yarn(model: Gguf, factor: float) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    original = model.own("rope.scaling.original_context_length")
    if original:
        found["original_max_position_embeddings"] = int(original)
    for name in ("beta_fast", "beta_slow"):
        value = model.own(f"rope.scaling.yarn_{name}")
        if value is not None:
            found[name] = float(value)
    scale = model.own("rope.scaling.yarn_attn_factor", model.own("rope.scaling.attn_factor"))
    if scale is not None and scale != 1:  # on top of YaRN's own factor
        found["attention_factor"] = float(scale) * (1 + 0.1 * math.log(factor))
    return found


def _llama3(model: Gguf, theta: float, dim: int) -> dict[str, Any] | None:
    stored = model.tensors[FREQUENCIES]
    if stored.kind != 0 or stored.shape != (dim // 2,):
        raise ConversionError(f"{model.first}: tensor {FREQUENCIES!r} is not {dim // 2} F32 values")
    factors = np.fromfile(model.files[stored.file], np.float32, dim // 2, offset=stored.start)
    if np.allclose(factors, 1, rtol=CLOSE):
        return None
    factor = float(factors.max())
    waves = 2 * np.pi * theta ** (np.arange(0, dim, 2) / dim)
    low, high = _bounds(factors.astype(np.float64), waves, factor)
    if not np.allclose(llama3_factors(waves, factor, low, high, CONTEXT), factors, rtol=CLOSE):
        raise ConversionError(
            f"{model.first}: tensor {FREQUENCIES!r} is no scaling of Llama 3, "
            "the only kind supported"
        )
    return {
        "rope_type": "llama3",
        "factor": round(factor, 5),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": CONTEXT,
    }


def _bounds(factors: np.ndarray, waves: np.ndarray, factor: float) -> tuple[float, float]:
    """(low, high) of a scaling: the ramp between them is a straight line over 1 / wavelength."""
    between = (factors > 1 * (1 + CLOSE)) & (factors < factor * (1 - CLOSE))
    if np.allclose(llama3_factors(waves, factor, LOW, HIGH, CONTEXT), factors, rtol=CLOSE):
        return LOW, HIGH
    if between.sum() < 2:
        return LOW, HIGH
    ramp = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    slope, start = np.polyfit(1 / waves[between], ramp, 1)
    span = CONTEXT / slope
    low = -start * span
    return round(float(low), 6), round(float(low + span), 6)


def llama3_factors(
    waves: np.ndarray, factor: float, low: float, high: float, context: int
) -> np.ndarray:
    """By what Llama 3's scaling divides the frequencies of these wavelengths."""
    ramp = np.clip((context / waves - low) / (high - low), 0, 1)
    return 1 / ((1 - ramp) / factor + ramp)
