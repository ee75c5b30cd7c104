"""What compiled functions need beside the arrays they are given."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from icp_jax.errors import InputError
from icp_jax.streaming import storage


class Programs:
    """Compiled functions, kept while a plan is made: they take memory too."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def beside(self, function: Any, *args: Any, **kwargs: Any) -> int:
        """Bytes a function takes beside its arguments: temporaries and new outputs."""
        args, kwargs = jax.tree.map(_placed, (args, kwargs))  # as the run's, or it compiles its own
        self.kept.append(function.lower(*args, **kwargs).compile())
        found = self.kept[-1].memory_analysis()
        if found is None:
            raise InputError("this backend does not say what memory its programs need")
        return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def shape(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An array that is not there."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _placed(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=storage.here())
