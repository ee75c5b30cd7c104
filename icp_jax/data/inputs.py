"""Calibration samples for a model: windows of tokens, or images."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Protocol

import numpy as np

from icp_jax import data
from icp_jax.config import CalibrationConfig
from icp_jax.data import own
from icp_jax.errors import InputError
from icp_jax.generation.generate import Source
from icp_jax.models import Family
from icp_jax.phases import Progress


class Described(Protocol):
    """A model with its config, in memory or in a folder."""

    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def family(self) -> Family: ...
    @property
    def folder(self) -> Any: ...


class Whole(Described, Source, Protocol):
    """A model with its params."""


def resolved(config: CalibrationConfig, source: Described) -> CalibrationConfig:
    """Fill in the unset fields. Raises InputError for data that the model cannot take."""
    family, written = source.family, own.asked(config)
    config = dataclasses.replace(config, samples=config.count)
    if family.kind == "vision":
        if written:
            raise InputError(
                f"this model reads images and writes no text: give images, not {config.data}"
            )
        if config.seq_len is not None:
            raise InputError("calibration.seq_len is for text: leave it out for this vision model")
        from icp_jax.vision import folders

        # the default data set is text; it means that no data is given, which a plan accepts
        if config.data in data.HUB and config.data != CalibrationConfig().data:
            raise InputError(f"this model reads images, not {config.data}: {folders.ADVICE}")
        return config
    data.vocabulary(source.config)
    if written:
        own.first_token(source.config)
    length = data.length_of(config.data, config.seq_len, family.context)
    return dataclasses.replace(config, seq_len=length)


def calibration(
    config: CalibrationConfig, source: Whole, progress: Progress = lambda *event: None
) -> np.ndarray:
    """Load tokens `[samples, T]` int32 or pixels `[samples, 3, S, S]` float32.

    config: unresolved, since unset `samples` may become fewer than 128. Raises InputError.
    """
    given, config = config, resolved(config, source)
    if source.family.kind == "vision":
        from icp_jax.vision import calibration, folders, image_settings

        if config.data in data.HUB:
            raise InputError(f"this model reads images, not {config.data}: {folders.ADVICE}")
        settings = image_settings.of_source(source)
        return calibration.calibration_pixels(config.data, config.count, config.seed, settings)
    if own.asked(config):
        assert config.seq_len is not None  # resolved
        return own.windows(source, config, config.seq_len, progress)
    encode = data.Encoder(source.folder, data.vocabulary(source.config), progress)
    return data.calibration_tokens(given, source.family.context, encode, progress)


def checked(source: Described, samples: np.ndarray) -> np.ndarray:
    """Validate the user's own samples and convert them to int32 or float32. Raises InputError."""
    samples = np.asarray(samples)
    return (_images if source.family.kind == "vision" else _tokens)(source, samples)


def _images(source: Described, pixels: np.ndarray) -> np.ndarray:
    side = source.family.side
    if pixels.shape[1:] != (3, side, side) or not len(pixels) or pixels.dtype.kind != "f":
        raise InputError(
            f"images must be normalised floats [N, 3, {side}, {side}], "
            f"got {pixels.dtype}{list(pixels.shape)}"
        )
    if not np.isfinite(pixels).all():
        raise InputError("images must be finite, got NaN or infinity")
    return pixels.astype(np.float32)


def _tokens(source: Described, tokens: np.ndarray) -> np.ndarray:
    vocabulary, context = data.vocabulary(source.config), source.family.context
    if tokens.ndim != 2 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(f"tokens must be integers [N, T], got {tokens.dtype}{list(tokens.shape)}")
    if tokens.shape[1] > context:
        raise InputError(
            f"windows of {tokens.shape[1]} tokens exceed the model's context {context}"
        )
    if not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise InputError(f"token ids must be in [0, {vocabulary}), the model's vocabulary")
    return tokens.astype(np.int32)


def record(source: Described, samples: np.ndarray) -> dict[str, Any]:
    """The result file's record of the calibration samples: digest and shape."""
    what = "images" if source.family.kind == "vision" else "tokens"
    digest = hashlib.sha256(np.ascontiguousarray(samples).data).hexdigest()
    return {f"calibration_{what}": digest, "calibration_shape": list(samples.shape)}
