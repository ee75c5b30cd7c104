"""The memory that compiled functions need besides their arguments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from icp_jax.errors import InputError
from icp_jax.streaming import storage


class Programs:
    """Compiled functions. They are kept during planning, since they take host memory too."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def beside(self, function: Any, *args: Any, **kwargs: Any) -> int:
        """Bytes of a function's temporaries and new outputs. Raises InputError."""
        args, kwargs = jax.tree.map(_placed, (args, kwargs))  # as in the run, to share its cache
        self.kept.append(function.lower(*args, **kwargs).compile())
        found = self.kept[-1].memory_analysis()
        if found is None:
            raise InputError("this backend does not report the memory of programs: set no limits")
        return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def shape(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _placed(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=storage.here())
