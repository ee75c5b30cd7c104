"""Rotary position embeddings: inverse frequencies and angles for the supported scalings.

Names follow Hugging Face. Frequencies are computed on the host and rounded to float32 where torch
rounds: at position 2048 the last bit of a frequency changes an angle by 1e-4. Angles, cosines and
sines are computed in float32 on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.errors import InputError
from icp_jax.models.fields import check_fields

ROPE = "rope_parameters."
OUTER = {  # keys of the config, or of its rope_parameters
    **dict.fromkeys(("rope_theta", "partial_rotary_factor"), "number?"),
    "original_max_position_embeddings": "size?",
}
INNER = {
    **dict.fromkeys(("rope_type", "type"), "word?"),
    **dict.fromkeys(("beta_fast", "beta_slow", "mscale", "mscale_all_dim"), "number?"),
    "attention_factor": "number?",
    "truncate": "flag?",
}
HAVE_ORIGINAL = ("llama3", "yarn")  # types that set the original, shorter training context


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of a model. dim: of a head; factor: by which the context is extended."""

    dim: int
    max_position_embeddings: int
    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    scale: float = 1.0  # of cos and sin: yarn's attention factor

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], dim: int) -> Rope:
        """Read a `config.json` dict with `rope_parameters` or `rope_scaling`.

        Raises InputError for an unsupported type, KeyError for a missing setting.
        """
        p = _parameters(config)
        kind = p.get("rope_type") or p.get("type") or "default"
        if kind not in KINDS:
            raise InputError(f"rope type {kind!r} is not supported; supported: {', '.join(KINDS)}")
        if (p.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
            raise InputError("partial_rotary_factor other than 1 is not supported")
        if dim % 2:
            raise InputError(f"rotary embeddings need an even head_dim, got {dim}")
        context = config["max_position_embeddings"]
        original = p.get("original_max_position_embeddings") or context
        if kind in HAVE_ORIGINAL:
            original = config.get("original_max_position_embeddings") or original
        settings: dict[str, Any] = {}
        if kind != "default":
            factor = p["factor"]
            if factor is None and kind == "yarn":
                factor = context / original
            check_fields({"factor": factor}, {"factor": "number"}, ROPE)
            settings["factor"] = float(factor)
        if kind == "llama3":
            check_fields(p, dict.fromkeys(("low_freq_factor", "high_freq_factor"), "number"), ROPE)
        if kind == "llama3":
            settings |= {name: float(p[name]) for name in ("low_freq_factor", "high_freq_factor")}
        if kind == "yarn":
            settings |= {n: float(p[n]) for n in ("beta_fast", "beta_slow") if p.get(n)}
            settings["truncate"] = bool(p.get("truncate", True))
            settings["scale"] = _attention_factor(settings["factor"], p)
        return cls(
            dim=dim,
            max_position_embeddings=context,
            rope_type=kind,
            rope_theta=float(p.get("rope_theta") or config.get("rope_theta") or cls.rope_theta),
            original_max_position_embeddings=original,
            **settings,
        )


def _parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of a config, under either key. Raises InputError."""
    check_fields(config, OUTER)
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    check_fields(config, {key: "object?"})
    p = dict(config.get(key) or {})
    if any(isinstance(value, Mapping) for value in p.values()):
        raise InputError("rope_parameters that differ by layer type are not supported")
    check_fields(p, OUTER | INNER, ROPE)
    return p


def _attention_factor(factor: float, p: Mapping[str, Any]) -> float:
    """YaRN's factor of cos and sin: as configured, or computed from `factor` as in the paper."""

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if p.get("attention_factor") is not None:
        return float(p["attention_factor"])
    if p.get("mscale") and p.get("mscale_all_dim"):
        return mscale(p["mscale"]) / mscale(p["mscale_all_dim"])
    return mscale(1.0)


def _power(base: Any, exponent: Any) -> np.ndarray:
    """A power of a float32 number, correctly rounded, unlike NumPy's float32 power."""
    exact = np.asarray(base, np.float32).astype(np.float64) ** np.asarray(exponent, np.float64)
    return np.asarray(exact, np.float32)


def _powers(rope: Rope, base: float | np.floating | np.ndarray) -> np.ndarray:
    """base^(0/d), base^(2/d), ...: `[d / 2]`, wavelengths over 2π."""
    return _power(base, np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim))


def _default(rope: Rope, length: int) -> np.ndarray:
    return np.float32(1) / _powers(rope, rope.rope_theta)


def _linear(rope: Rope, length: int) -> np.ndarray:
    return _default(rope, length) / np.float32(rope.factor)


def _dynamic(rope: Rope, length: int) -> np.ndarray:
    """Dynamic NTK: beyond the training context the base grows with the length."""
    context, factor = rope.max_position_embeddings, np.float32(rope.factor)
    stretch = factor * np.float32(max(length, context)) / np.float32(context) - (factor - 1)
    grown = _power(stretch, rope.dim / (rope.dim - 2))
    return np.float32(1) / _powers(rope, np.float32(rope.rope_theta) * grown)


def _llama3(rope: Rope, length: int) -> np.ndarray:
    """Stretch long wavelengths by the factor, keep short ones, interpolate between."""
    kept = _default(rope, length)
    wavelengths = np.float32(2 * math.pi) * (1 / kept)
    turns = rope.original_max_position_embeddings * (1 / wavelengths)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
    return (1 - keep) * kept / np.float32(rope.factor) + keep * kept


def _yarn(rope: Rope, length: int) -> np.ndarray:
    """A ramp over the dimensions from kept to stretched, by rotations in the original context."""

    def dimension(turns: float) -> float:
        context = rope.original_max_position_embeddings
        return rope.dim * math.log(context / (turns * 2 * math.pi)) / 2 / math.log(rope.rope_theta)

    first, last = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dim - 1)
    last += 0.001 if first == last else 0
    ramp = (np.arange(rope.dim // 2, dtype=np.float32) - first) / (last - first)
    keep = 1 - np.clip(ramp, 0, 1).astype(np.float32)
    powers = _powers(rope, rope.rope_theta)
    return 1 / (np.float32(rope.factor) * powers) * (1 - keep) + 1 / powers * keep


KINDS: dict[str, Callable[[Rope, int], np.ndarray]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}


def inverse_frequencies(rope: Rope, length: int) -> Float[np.ndarray, " half"]:
    """Radians per position of each pair of dimensions, for sequences of `length` tokens."""
    return KINDS[rope.rope_type](rope, length)


def cos_sin(
    rope: Rope, length: int, positions: Int[AnyArray, "b t"] | None = None
) -> tuple[Float[Array, "*#b t half"], Float[Array, "*#b t half"]]:
    """Cosine and sine of the angles of each position, float32, times `rope.scale`.

    positions: of the tokens, within the context. Unset: 0 to length - 1.
    """
    if positions is None:
        at = jnp.arange(length, dtype=jnp.float32)
    else:
        at, length = positions.astype(jnp.float32), rope.max_position_embeddings
    frequencies = jnp.asarray(inverse_frequencies(rope, length), jnp.float32)
    angles = at[..., None] * frequencies
    return jnp.cos(angles) * rope.scale, jnp.sin(angles) * rope.scale


def rotate(
    x: Float[AnyArray, "b t h d"],
    cos: Float[AnyArray, "*#b t half"],
    sin: Float[AnyArray, "*#b t half"],
) -> Float[Array, "b t h d"]:
    """Rotate the pairs (x_i, x_{i + d/2}) of each head by their position's angles, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
