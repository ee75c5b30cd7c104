"""Memory layout of host matrices: row-major, or column-major like kernels of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Tree = dict[str, Any]


def lies_transposed(leaf: Any) -> bool:
    """Whether an array is a column-major matrix."""
    if not isinstance(leaf, np.ndarray) or leaf.ndim != 2:
        return False
    return leaf.flags.f_contiguous and not leaf.flags.c_contiguous


def apart(params: Tree) -> tuple[Tree, Tree]:
    """(row-major leaves, transposes of column-major leaves), so that nothing is copied."""
    plain: Tree = {}
    turned: Tree = {}
    for name, leaf in params.items():
        if isinstance(leaf, Mapping):
            plain[name], turned[name] = apart(dict(leaf))
        elif lies_transposed(leaf):
            turned[name] = leaf.T
        else:
            plain[name] = leaf
    return plain, turned


def together(plain: Tree, turned: Tree) -> Tree:
    """The inverse of `apart`."""
    params = dict(plain)
    for name, leaf in turned.items():
        inside = isinstance(leaf, Mapping)
        params[name] = together(plain.get(name, {}), leaf) if inside else leaf.T
    return params
