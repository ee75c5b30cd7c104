"""Boolean `keep` masks from scores: unstructured or n:m.

Ties go to the lowest index: of equal scores, the first is pruned first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.backend import current as backend
from icp_jax.core import scaling
from icp_jax.errors import InputError

PARTS = 8  # parts of a row that are counted side by side


def parse_pattern(text: str | None) -> tuple[int, int] | None:
    """Parse `"2:4"` to (2, 4): keep 2 of every 4 consecutive inputs. None is unstructured."""
    if text is None or text == "unstructured":
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise InputError(f"pattern {text!r} is not n:m with 0 < n < m, such as 2:4")
    return int(match[1]), int(match[2])


def counted(budget: Any, most: int, shape: tuple[int, ...] = ()) -> Int[Array, "*s"]:
    """Check a budget, or one per row, and convert it to int32.

    Raises TypeError for another shape or a type that is not an integer (a float, a bool), and
    ValueError for a concrete value outside 0..most.
    """
    given = budget if isinstance(budget, jax.Array) else np.asarray(budget)
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(
            f"budget must be an integer number of weights to prune, got {budget!r}: "
            "for a sparsity s pass round(s * kernel.size)"
        )
    if given.shape != shape:
        wanted = f"of shape {shape}" if shape else "one integer"
        raise TypeError(f"budget must be {wanted}, got shape {given.shape}")
    if not isinstance(given, jax.core.Tracer):
        wrong = [int(b) for b in np.ravel(given) if not 0 <= b <= most]
        if wrong:
            raise ValueError(f"budget must be from 0 to {most}, got {wrong[0]}")
    return jnp.asarray(given).astype(jnp.int32)


def sortable(scores: Float[AnyArray, "*s"]) -> Int[Array, "*s"]:
    """Non-negative scores as integers of the same order: int64 for float64, int32 otherwise."""
    return scaling.bits(scores)


def _count(test: Callable[..., Bool[Array, "r p"]], *arrays: Array) -> Int[Array, "r 1"]:
    """Number of elements per row that pass `test`, which gets the same part of all arrays.

    On the CPU, PARTS parts of a row are added elementwise, which XLA fuses into one loop. A plain
    sum along the row would write the hits to memory first.
    """
    columns = arrays[0].shape[1]
    parts = math.gcd(columns, PARTS) if backend.is_host() else 1
    split = [a.reshape(-1, parts, columns // parts) for a in arrays]
    hits = [test(*(a[:, k] for a in split)).astype(jnp.int32) for k in range(parts)]
    return jnp.sum(sum(hits), axis=1, keepdims=True, dtype=jnp.int32)


def _bisect(count_below, want, top: int, dtype=jnp.int32) -> Int[Array, "r 1"]:
    """The least v in [0, top] with count_below(v + 1) ≥ want, by bisection on integers."""

    def step(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        enough = count_below(middle + 1) >= want
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    low = jnp.zeros(want.shape, dtype)
    high = jnp.full(want.shape, top, dtype)
    return jax.lax.fori_loop(0, max(top, 1).bit_length(), step, (low, high))[0]


def keep_largest(scores: Float[AnyArray, "r c"], budget: Any) -> Bool[Array, "r c"]:
    """False at the `budget[i]` smallest scores of row i; ties go to the lowest index.

    Finds the k-th value by bisecting the bits of the float: 31 counting passes (63 for float64),
    no sort. A second bisection resolves ties at the k-th value if there are any. Raises TypeError
    or ValueError for a bad budget, see `counted`.
    """
    chex.assert_rank(scores, 2)
    keys, (rows, columns) = sortable(scores), scores.shape
    budget = counted(budget, columns, (rows,))[:, None]
    top = int(jnp.iinfo(keys.dtype).max) - 1
    threshold = _bisect(lambda v: _count(lambda k: k < v, keys), budget, top, keys.dtype)
    below, equal = keys < threshold, keys == threshold
    wanted = budget - _count(lambda k: k < threshold, keys)  # ties to prune

    def first_ones(_):
        index = jnp.arange(columns, dtype=jnp.int32)

        def tied_before(v):
            return _count(lambda k, i: (k == threshold) & (i < v), keys, index[None])

        end = _bisect(tied_before, wanted, columns)
        return below | (equal & (index <= end) & (wanted > 0))

    def all_or_none(_):
        return below | (equal & (wanted > 0))

    tied = _count(lambda k: k == threshold, keys)
    ambiguous = jnp.any((tied != wanted) & (wanted > 0))
    return ~jax.lax.cond(ambiguous, first_ones, all_or_none, None)


def keep_n_of_m(scores: Float[AnyArray, "i o"], n: int, m: int) -> Bool[Array, "i o"]:
    """True at the n largest of every m consecutive inputs (axis 0), for each output.

    Counts pairwise ranks: m² comparisons, no sort. Raises ValueError if m does not divide the
    inputs.
    """
    chex.assert_rank(scores, 2)
    inputs, outputs = scores.shape
    if inputs % m:
        raise ValueError(f"pattern {n}:{m}: {inputs} inputs are not a multiple of {m}")
    grouped = sortable(scores).reshape(inputs // m, m, outputs)
    order = jnp.arange(m)
    mine, other = grouped[:, :, None], grouped[:, None, :]
    before = (order[None, :] < order[:, None])[None, :, :, None]
    rank = jnp.sum((other < mine) | ((other == mine) & before), axis=2, dtype=jnp.int32)
    return (rank >= m - n).reshape(inputs, outputs)


def keep_best(
    scores: Float[AnyArray, "i o"], budget: Int[Array, ""], pattern: tuple[int, int] | None
) -> Bool[Array, "i o"]:
    """False at the `budget` smallest |scores| of the whole matrix, or to `pattern`.

    Ties go to the lowest (input, output), or to the lowest input of a group.
    """
    if pattern is not None:
        return keep_n_of_m(scores, *pattern)
    return keep_largest(scores.reshape(1, -1), budget[None]).reshape(scores.shape)


def apply_keep(params: Any, keep: Any) -> Any:
    """`jnp.where(keep, p, 0)` for every leaf that has a mask.

    keep: a tree like `params`, in which dicts may leave keys out and None means a subtree without
    masks. Raises KeyError for a key that the params do not have.
    """
    if keep is None:
        return params
    if isinstance(keep, Mapping):
        unknown = [key for key in keep if key not in params]
        if unknown:
            raise KeyError(f"keep has {unknown[0]!r}, which is not in the params: remove it")
        return {key: apply_keep(leaf, keep.get(key)) for key, leaf in params.items()}

    def leaf(k: Any, p: Any) -> Any:
        return p if k is None else jnp.where(k, p, jnp.zeros_like(p))

    return jax.tree.map(leaf, keep, params, is_leaf=lambda k: k is None)
