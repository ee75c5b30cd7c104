"""The memory that generation takes. All blocks of a model have params and caches of one size."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax.generation.generate import Source, padded
from icp_jax.generation.steps import Slots, block_step


def param_bytes(source: Source, dtype: str) -> int:
    """Bytes of a model's params on the device, as `on_device` holds them."""
    width = jnp.dtype(dtype).itemsize

    def size(tree: Any) -> int:
        leaves = jax.tree.leaves(tree)
        return sum(int(np.size(leaf)) * (width if np.ndim(leaf) > 1 else 4) for leaf in leaves)

    return size([source.embed(), source.head()]) + source.family.n_blocks * size(source.block(0))


def cache_bytes(source: Source, new: int, dtype: str) -> int:
    """Bytes of the keys and values of one row: a prompt of one token, and `new` tokens."""
    family, room = source.family, padded(padded(1) + new)
    x = jax.ShapeDtypeStruct((1, 1, family.hidden_size), dtype)
    slots = Slots(jnp.int32(0), jnp.zeros(1, jnp.int32))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), source.block(0))
    step = partial(block_step, family.block, dtype, room)
    _, cache = jax.eval_shape(step, params, {}, x, slots)
    each = sum(int(np.prod(c.shape)) * c.dtype.itemsize for c in jax.tree.leaves(cache))
    return family.n_blocks * each
