"""The steps of the loop that are compiled: one program for all blocks of a shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype

from icp_jax import stats
from icp_jax.budgets import Shapes
from icp_jax.dot import full_precision
from icp_jax.errors import InputError
from icp_jax.mesh import ONE, Devices
from icp_jax.models.spec import Family
from icp_jax.trees import lies_transposed

Params = dict[str, Any]


def compute_dtype(name: str) -> Literal["float32", "bfloat16"]:
    """`auto` resolved: bfloat16 on an accelerator, float32 on the CPU."""
    if name == "float32" or (name == "auto" and jax.default_backend() == "cpu"):
        return "float32"
    if name in ("auto", "bfloat16"):
        return "bfloat16"
    raise InputError(f"dtype must be auto, float32 or bfloat16, got {name!r}")


@dataclass(frozen=True)
class Apply:
    """A module as a pure function of (params, x), computing in `dtype`; gives float32."""

    module: Any
    dtype: str

    def rematerialised(self) -> Apply:
        """The same, whose gradient computes again what takes much memory to keep."""
        if not hasattr(self.module, "remat"):  # SAM's attention always does
            return self
        return Apply(self.module.clone(remat=True), self.dtype)

    def __call__(self, params: Params, x: jax.Array) -> jax.Array:
        with full_precision(self.dtype):
            return self.module.apply({"params": params}, x.astype(self.dtype)).astype(jnp.float32)

    def watched(
        self, params: Params, x: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The inputs of the block's linears by tap, and by linear ‖Wᵀx‖² of every sample."""
        kinds = ["taps", "energies"]
        with full_precision(self.dtype):
            _, found = self.module.apply({"params": params}, x.astype(self.dtype), mutable=kinds)
        taps = {name: values[0] for name, values in found["taps"].items()}
        return taps, {name: sown["outputs"][0] for name, sown in found["energies"].items()}


@partial(jax.jit, static_argnums=(0, 1))
def embed_batch(module, dtype, params, tokens):
    with full_precision("float32"):
        return module.apply({"params": params}, tokens).astype(dtype), None


def embed_tokens(
    family: Family, params: Params, dtype: str = "float32", devices: Devices = ONE
) -> Callable[..., tuple[jax.Array, None]]:
    """The embedding as a step for `streams.advance`; dtype: the stream's."""
    params = to_device(params, devices)
    return lambda tokens, valid: embed_batch(family.embed, dtype, params, tokens)


class Statistics(NamedTuple):
    """What the pruners are told of a block's linears."""

    sums: dict[str, stats.Sums]  # of the inputs, by tap
    energies: dict[str, jax.Array]  # ‖Wᵀx‖² over all tokens, by linear


def no_statistics(family: Family, shapes: Shapes, tokens: int) -> Statistics:
    """Before the first sample, of `tokens` in all.

    The last linear is computed for nothing but its energy: only where that is less work than to
    tell it from the moments, and its energy is left out otherwise.
    """
    sums = {tap: stats.zeros(width) for tap, width in family.tap_widths(shapes).items()}
    *counted, last = (spec.name for spec in family.linears)
    if stats.outputs_cost_less(tokens, shapes[last][0]):
        counted.append(last)
    return Statistics(sums, {name: jnp.zeros((), jnp.float32) for name in counted})


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def collect(apply, params, x, seen, valid):
    """Add one batch to the statistics of every linear; padding counts for nothing."""
    real = jnp.arange(x.shape[0], dtype=jnp.int32) < valid
    taps, energies = apply.watched(params, x)
    added = {}
    for name, tap in taps.items():
        tap = jnp.where(real.reshape(-1, *[1] * (tap.ndim - 1)), tap, 0)
        rows = tap.reshape(-1, tap.shape[-1])
        added[name] = stats.add(seen.sums[name], rows, valid * (rows.shape[0] // x.shape[0]))
    of_real = {
        name: total + jnp.sum(jnp.where(real[:, None], energies[name].reshape(len(real), -1), 0))
        for name, total in seen.energies.items()
    }
    return Statistics(added, of_real)


@partial(jax.jit, static_argnums=0)
def forward(apply, params, x, valid):
    """The block's output, and its energy (not finite where the output is not)."""
    y = apply(params, x)
    return y.astype(x.dtype), _energy(y, valid)


@partial(jax.jit, static_argnums=0)
def forward_beside(apply, params, x, dense, valid):
    """The block's output, and the energies of its distance to `dense` and of `dense`."""
    y = apply(params, x)
    dense = dense.astype(y.dtype)
    return y.astype(x.dtype), (_energy(y - dense, valid), _energy(dense, valid))


def _energy(y, valid):
    real = (jnp.arange(y.shape[0], dtype=jnp.int32) < valid).reshape(-1, *[1] * (y.ndim - 1))
    return jnp.sum(jnp.square(jnp.where(real, y, 0)))


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
    turned = tuple(jax.default_backend() != "cpu" and lies_transposed(leaf) for leaf in leaves)
    sent = [leaf.T if back else leaf for leaf, back in zip(leaves, turned, strict=True)]
    return jax.tree.unflatten(tree, _float32(devices.whole(sent), turned))
