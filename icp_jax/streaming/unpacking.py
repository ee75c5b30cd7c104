"""Packed matrices that are unpacked on the device, so that fewer bytes are sent to it.

On the CPU nothing is sent: matrices are unpacked by NumPy as they are read, see
`converters.packed_codec`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped, UInt8

from converters.packed_forms import CODES, MASK, NONZEROS, Parts, Pattern, parse_form
from converters.packed_patterns import masks_of
from icp_jax import backend

STEPS = 256  # lengths of the non-zeros, so that few programs unpack all matrices of one shape


@jax.tree_util.register_pytree_node_class
class Packed:
    """A packed matrix `[out, in]`: its places, as in the file, and its non-zeros, zeros behind.

    A pytree of both arrays; shape and form are static.
    """

    def __init__(self, places: Any, nonzeros: Any, shape: tuple[int, int], form: str):
        self.places, self.nonzeros, self.shape, self.form = places, nonzeros, shape, form

    @classmethod
    def of(cls, parts: Parts, shape: tuple[int, ...], form: str) -> Packed:
        """The parts of a tensor, the non-zeros padded to one of `STEPS` lengths."""
        rows, columns = shape
        kept, step = parts[NONZEROS], -(-rows * columns // STEPS)
        places = parts[MASK] if MASK in parts else parts[CODES].view("<u4")
        return cls(places, np.pad(kept, (0, -len(kept) % step)), (rows, columns), form)

    @property
    def nbytes(self) -> int:
        return int(self.places.nbytes + self.nonzeros.nbytes)

    def tree_flatten(self) -> tuple[tuple[Any, Any], tuple[tuple[int, int], str]]:
        return (self.places, self.nonzeros), (self.shape, self.form)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> Packed:
        return cls(*children, *static)


def is_packed(leaf: Any) -> bool:
    """Whether a leaf of a param tree is packed."""
    return isinstance(leaf, Packed)


def to_move(source: Any, t: int) -> Any:
    """The params of block t as they are sent: packed if the source is, and the device unpacks."""
    packed = getattr(source, "packed_block", None)
    return source.block(t) if packed is None or not unpacks() else packed(t)


def unpacks() -> bool:
    """Whether the device unpacks."""
    return not backend.is_host()


def kernel_of(packed: Packed) -> Shaped[Array, "i o"]:
    """The kernel of a packed matrix, in the dtype of its non-zeros. For `jit`."""
    # as one program with the transpose, the gather is four times slower on a CPU
    return jax.lax.optimization_barrier(matrix_of(packed)).T


def matrix_of(packed: Packed) -> Shaped[Array, "o i"]:
    """A packed matrix, in the dtype of its non-zeros. For `jit`."""
    size = packed.shape[0] * packed.shape[1]
    pattern = parse_form(packed.form)
    if isinstance(pattern, Pattern):
        stored, at = _places(_groups(packed.places, size, pattern), pattern.m, pattern.n)
    else:
        stored, at = _places(packed.places, 8, None)
    kept = jnp.take(packed.nonzeros, at.reshape(-1)[:size], mode="clip")
    weights = jnp.where(stored.reshape(-1)[:size], kept, jnp.zeros((), kept.dtype))
    return weights.reshape(packed.shape)


@partial(jax.jit, static_argnums=1)
def cast_kernel(packed: Packed, dtype: str) -> Shaped[Array, "i o"]:
    """`kernel_of`, compiled, in a dtype."""
    return kernel_of(packed).astype(dtype)


def _groups(words: Array, size: int, pattern: Pattern) -> UInt8[Array, "g"]:
    """The places of each group of a pattern as the bits of a byte."""
    digits = []
    base = jnp.uint32(pattern.places)
    for _ in range(pattern.per_word):
        words, digit = jnp.divmod(words, base)
        digits.append(digit)
    codes = jnp.stack(digits, axis=1).reshape(-1)[: size // pattern.m]
    return jnp.asarray(masks_of(pattern))[codes.astype(jnp.int32)]


def _places(
    octets: UInt8[Array, "g"], m: int, n: int | None
) -> tuple[Bool[Array, "g m"], Int[Array, "g m"]]:
    """(which of the m elements of each group are stored, where in the non-zeros).

    n: stored elements of every group; None: as many as it has bits.
    """
    element = jnp.arange(m, dtype=jnp.uint8)
    stored = (octets[:, None] >> element) & jnp.uint8(1)
    below = octets[:, None] & ((jnp.uint8(1) << element) - jnp.uint8(1))
    within = jax.lax.population_count(below).astype(jnp.int32)
    if n is None:
        counts = jax.lax.population_count(octets).astype(jnp.int32)
        first = jnp.cumsum(counts) - counts
    else:
        first = n * jnp.arange(len(octets), dtype=jnp.int32)
    return stored == 1, first[:, None] + within
