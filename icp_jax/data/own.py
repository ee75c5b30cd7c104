"""Calibration text that the model writes itself: `self:N`.

Every window starts with the token that starts a text and goes on with draws from the model's own
distribution. Window k depends on the model, the seed and k only, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax.errors import InputError
from icp_jax.generation.generate import Source, stream
from icp_jax.generation.memory import cache_bytes, param_bytes
from icp_jax.generation.sampling import Sampling, row_keys
from icp_jax.generation.steps import on_device
from icp_jax.phases import GENERATE, Progress
from icp_jax.settings import CalibrationConfig
from icp_jax.streaming.passes import compute_dtype

PREFIX = "self:"
ROWS = 32  # most windows at once
SMALL = 1 << 28  # bytes


def asked(config: CalibrationConfig) -> bool:
    """Whether the data is `self:N`. Raises InputError for a wrong N, or samples that differ."""
    if not config.data.startswith(PREFIX):
        return False
    if not config.own:
        raise InputError(f"calibration data {config.data}: give a number of windows, as in self:32")
    if config.samples not in (None, config.own):
        raise InputError(
            f"calibration data {config.data} has {config.own} windows, but {config.samples} "
            "samples are asked for: leave out calibration.samples"
        )
    return True


def first_token(config: Mapping[str, Any]) -> int:
    """The token that starts a text. Raises InputError if the model's config names none."""
    found = config.get("bos_token_id")
    if not isinstance(found, int):
        raise InputError(
            "config.json has no bos_token_id, the token that starts a text: "
            "add it, or give calibration text instead of self:N"
        )
    return found


def together(source: Source, count: int, length: int, dtype: str) -> int:
    """How many windows are written at once: so many that their caches are no larger than the
    weights, or than SMALL."""
    room = max(SMALL, param_bytes(source, dtype))
    return max(1, min(ROWS, count, room // cache_bytes(source, length - 1, dtype)))


def memory(source: Source, config: CalibrationConfig, length: int) -> int:
    """Bytes that writing the windows takes: all weights, the caches, and the logits."""
    dtype = compute_dtype("auto")
    rows = together(source, config.count, length, dtype)
    caches = rows * cache_bytes(source, length - 1, dtype)
    logits = 4 * rows * source.config["vocab_size"] * 4
    return param_bytes(source, dtype) + caches + logits


def windows(
    source: Source, config: CalibrationConfig, length: int, progress: Progress
) -> np.ndarray:
    """Windows `[N, length]` int32 that the model writes at temperature 1. Raises InputError."""
    start, dtype = first_token(source.config), compute_dtype("auto")
    count = config.count
    rows = together(source, count, length, dtype)
    params = on_device(source, dtype)
    found = np.empty((count, length), np.int32)
    key, new = jax.random.key(config.seed), length - 1
    found[:, 0] = start
    for begin in range(0, count, rows):
        # the last batch is full too, so that it needs no program of its own
        which = jnp.arange(begin, begin + rows, dtype=jnp.int32)
        prompts = [np.array([start], np.int32)] * rows
        keys, end = row_keys(key, which), min(begin + rows, count)
        texts = stream(source.family, dtype, params, prompts, keys, Sampling(1.0), new)
        for step, tokens in enumerate(texts, 1):
            found[begin:end, step] = tokens[: end - begin]
            progress(-1, GENERATE.name, begin * new + step * (end - begin), count * new, None)
    return found
