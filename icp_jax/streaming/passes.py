"""The passes of `core.passes`, compiled: one program for all blocks of a shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype

from icp_jax import backend
from icp_jax.core import passes
from icp_jax.core.passes import Params
from icp_jax.errors import InputError
from icp_jax.models.spec import Family
from icp_jax.streaming.layout import lies_transposed
from icp_jax.streaming.mesh import ONE, Devices

forward = jax.jit(passes.forward, static_argnums=0)
forward_beside = jax.jit(passes.forward_beside, static_argnums=0)
collect = jax.jit(passes.collect, static_argnums=0, donate_argnums=3)


def compute_dtype(name: str) -> Literal["float32", "bfloat16"]:
    """`auto` resolved: bfloat16 on an accelerator, float32 on the CPU. Raises InputError."""
    if name == "float32" or (name == "auto" and backend.is_host()):
        return "float32"
    if name in ("auto", "bfloat16"):
        return "bfloat16"
    raise InputError(f"dtype must be auto, float32 or bfloat16, got {name!r}")


@partial(jax.jit, static_argnums=(0, 1))
def embed_batch(module, dtype, params, tokens):
    return passes.embed(module, dtype, params, tokens), None


def embed_tokens(
    family: Family, params: Params, dtype: str = "float32", devices: Devices = ONE
) -> Callable[..., tuple[jax.Array, None]]:
    """The embedding as a step for `streams.advance`; dtype: the stream's."""
    params = to_device(params, devices)
    return lambda tokens, valid: embed_batch(family.embed, dtype, params, tokens)


def rounded(leaves: list[jax.Array], dtypes: Sequence[np.dtype]) -> list[jax.Array]:
    """What the export will hold: each leaf rounded to its stored dtype. `leaves` is emptied.

    By two programs: in one, XLA may drop both conversions (xla_allow_excess_precision), as is
    known of it on GPUs.
    """
    held = [canonicalize_dtype(dtype) for dtype in dtypes]  # there is no float64
    odd = [k for k, leaf in enumerate(leaves) if leaf.dtype != held[k]]
    found = {k: leaf for k, leaf in enumerate(leaves) if k not in odd}
    narrow = _narrowed([leaves[k] for k in odd], tuple(held[k] for k in odd))
    leaves.clear()
    found |= zip(odd, _widened(narrow), strict=True)
    return [found[k] for k in range(len(held))]


@partial(jax.jit, static_argnums=1)
def _narrowed(leaves, dtypes):
    return [leaf.astype(dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]


@jax.jit
def _widened(leaves):
    return [leaf.astype(jnp.float32) for leaf in leaves]


@partial(jax.jit, static_argnums=1)
def _float32(leaves, turned):
    return [
        (leaf.T if back else leaf).astype(jnp.float32)
        for leaf, back in zip(leaves, turned, strict=True)
    ]


@partial(jax.jit, static_argnums=(1, 2))
def _stored(leaf, dtype, turned):
    return (leaf.T if turned else leaf).astype(dtype)


def stored(leaf: jax.Array, old: np.ndarray) -> np.ndarray:
    """A leaf on the host, in the dtype of `old` and lying in memory as that does.

    Values of float64 that are what they were, in float32, keep all their bits.
    """
    turned = lies_transposed(old)
    found = np.asarray(_stored(leaf, canonicalize_dtype(old.dtype), turned))
    found = found.T if turned else found
    return _as_before(found, old) if old.dtype == np.float64 else found


def _as_before(found: np.ndarray, old: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        same = found.astype(np.float32) == old.astype(np.float32)
    if same.all():
        return old
    return np.where(same & (found != 0), old, found.astype(old.dtype))  # what went stays zero


def hidden(family: Family, embed: Params, sample: Any, dtype: str) -> jax.ShapeDtypeStruct:
    """The hidden states of samples, `[N, T, D]` or `[N, H, W, D]`, without computing them."""
    return jax.eval_shape(partial(embed_batch, family.embed, dtype), embed, sample)[0]


def to_device(params: Params, devices: Devices = ONE) -> Params:
    """A stored block on every device, as float32 master weights.

    A kernel that lies transposed, as checkpoints have it, travels so to an accelerator: turning
    it is the accelerator's work.
    """
    leaves, tree = jax.tree.flatten(params)
    turned = tuple(not backend.is_host() and lies_transposed(leaf) for leaf in leaves)
    sent = [leaf.T if back else leaf for leaf, back in zip(leaves, turned, strict=True)]
    return jax.tree.unflatten(tree, _float32(devices.whole(sent), turned))
