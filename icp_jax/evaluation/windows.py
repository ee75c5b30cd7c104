"""The windows of tokens that a model is evaluated on, and whether a second model reads them too."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from icp_jax import data
from icp_jax.data import inputs
from icp_jax.data.inputs import Described
from icp_jax.errors import InputError
from icp_jax.phases import Progress

Given = str | Path | np.ndarray  # data, or windows of tokens


def evaluation_tokens(
    source: Described, given: Given, seq_len: int | None, progress: Progress
) -> np.ndarray:
    """Tokens `[W, T]` int32 from data, or the given ones. Raises InputError."""
    if isinstance(given, np.ndarray):
        return inputs.checked(source, given)
    encode = data.Encoder(source.folder, data.vocabulary(source.config), progress)
    return data.evaluation_windows(str(given), seq_len, source.family.context, encode)


def check_vocabulary(source: Described, dense: Described) -> None:
    """Raise InputError unless both models have one vocabulary."""
    sizes = [data.vocabulary(model.config) for model in (source, dense)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the vocabularies differ: {sizes[0]} tokens in {source.folder}, {sizes[1]} in "
            f"{dense.folder}: give models of one vocabulary"
        )


def check_tokens(dense: Described, given: Given, windows: np.ndarray, progress: Progress) -> None:
    """Raise InputError unless the second model makes the same windows of the data."""
    length, context = windows.shape[1], dense.family.context
    if length > context:
        raise InputError(
            f"windows of {length} tokens exceed the context {context} of {dense.folder}: "
            f"set seq_len to {context} or less"
        )
    if isinstance(given, np.ndarray):
        return
    try:
        theirs = evaluation_tokens(dense, given, length, progress)
    except InputError as error:
        raise InputError(f"{dense.folder}: {error}") from None
    if not np.array_equal(theirs, windows):
        raise InputError(
            f"{dense.folder} reads other tokens from {given}: give a model of the same tokenizer"
        )
