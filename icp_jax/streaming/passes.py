"""The passes of `core.passes`, compiled: one program for all blocks of one shape."""

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
from icp_jax.core.token_errors import quantiles
from icp_jax.errors import InputError
from icp_jax.models.spec import Family
from icp_jax.streaming.layout import lies_transposed
from icp_jax.streaming.mesh import ONE, Devices
from icp_jax.streaming.unpacking import is_packed, kernel_of

forward = jax.jit(passes.forward, static_argnums=0)
forward_beside = jax.jit(passes.forward_beside, static_argnums=0)
collect = jax.jit(passes.collect, static_argnums=0, donate_argnums=3)


def stream_errors(
    lost: Sequence[Any], energies: Sequence[Any], of_tokens: np.ndarray
) -> dict[str, float]:
    """The errors of `BlockReport` from the energies of all batches and the error of each token."""
    distance, energy = (np.sum(np.asarray(x, np.float64)) for x in (lost, energies))
    median, high = map(float, quantiles(of_tokens))
    total = float(distance / max(energy, np.finfo(np.float64).tiny))
    return {"error": total, "error_median": median, "error_p95": high}


def compute_dtype(name: str) -> Literal["float32", "bfloat16"]:
    """Resolve `auto`: bfloat16 on an accelerator, float32 on the CPU. Raises InputError."""
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
    """The embedding as a step for `transfer.advance`. dtype: the stream's."""
    params = to_device(params, devices)
    return lambda tokens, valid: embed_batch(family.embed, dtype, params, tokens)


def rounded(leaves: list[jax.Array], dtypes: Sequence[np.dtype]) -> list[jax.Array]:
    """Round each leaf to its stored dtype, as the export does. `leaves` is emptied.

    This takes two programs: within one, XLA on GPUs may drop both conversions
    (xla_allow_excess_precision).
    """
    held = [canonicalize_dtype(dtype) for dtype in dtypes]  # float64 becomes float32
    odd = [k for k, leaf in enumerate(leaves) if leaf.dtype != held[k]]
    by_index = {k: leaf for k, leaf in enumerate(leaves) if k not in odd}
    narrow = _narrowed([leaves[k] for k in odd], tuple(held[k] for k in odd))
    leaves.clear()
    by_index |= zip(odd, _widened(narrow), strict=True)
    return [by_index[k] for k in range(len(held))]


@partial(jax.jit, static_argnums=1)
def _narrowed(leaves, dtypes):
    return [leaf.astype(dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]


@jax.jit
def _widened(leaves):
    return [leaf.astype(jnp.float32) for leaf in leaves]


@partial(jax.jit, static_argnums=1)
def _float32(leaves, turned):
    leaves = [kernel_of(leaf) if is_packed(leaf) else leaf for leaf in leaves]
    return [
        (leaf.T if back else leaf).astype(jnp.float32)
        for leaf, back in zip(leaves, turned, strict=True)
    ]


@partial(jax.jit, static_argnums=(1, 2))
def _stored(leaf, dtype, turned):
    return (leaf.T if turned else leaf).astype(dtype)


def stored(leaf: jax.Array, old: np.ndarray) -> np.ndarray:
    """A leaf on the host, with the dtype and memory layout of `old`.

    float64 values that are unchanged in float32 keep all their bits.
    """
    turned = lies_transposed(old)
    new = np.asarray(_stored(leaf, canonicalize_dtype(old.dtype), turned))
    new = new.T if turned else new
    return _as_before(new, old) if old.dtype == np.float64 else new


def _as_before(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        same = new.astype(np.float32) == old.astype(np.float32)
    if same.all():
        return old
    return np.where(same & (new != 0), old, new.astype(old.dtype))  # pruned weights stay zero


def hidden(family: Family, embed: Params, sample: Any, dtype: str) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the hidden states, `[N, T, D]` or `[N, H, W, D]`."""
    return jax.eval_shape(partial(embed_batch, family.embed, dtype), embed, sample)[0]


def to_device(params: Params, devices: Devices = ONE) -> Params:
    """Replicate a stored block on the devices as float32 master weights.

    A column-major kernel, as checkpoints have it, is sent as it is and transposed on the
    accelerator; a packed one is sent packed, and unpacked there.
    """
    leaves, tree = jax.tree.flatten(params, is_leaf=is_packed)
    turned = tuple(not backend.is_host() and lies_transposed(leaf) for leaf in leaves)
    sent = [leaf.T if back else leaf for leaf, back in zip(leaves, turned, strict=True)]
    return jax.tree.unflatten(tree, _float32(devices.whole(sent), turned))
