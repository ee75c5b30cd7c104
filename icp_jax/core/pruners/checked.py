"""Check the budget of a jitted pruner before it is traced."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from icp_jax.core.masks import counted


def checked(prune: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `prune` to check that `budget` is an integer from 0 to the size of `kernel`.

    prune: a jitted function; its `lower` and `trace` are kept. The wrapper raises TypeError or
    ValueError.
    """
    signature = inspect.signature(prune)

    @functools.wraps(prune)
    def call(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        size = int(np.prod(np.shape(given.arguments["kernel"])))
        given.arguments["budget"] = counted(given.arguments["budget"], size)
        return prune(*given.args, **given.kwargs)

    vars(call).update({name: getattr(prune, name) for name in ("lower", "trace")})
    return call
