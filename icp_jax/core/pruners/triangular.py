"""The upper factor of an inverse, by recursive halves in place, mostly as matrix products.

Half of a triangular matrix is zero, and half of a symmetric one is redundant. Products with them go
panel by panel, so that most of that half is never computed. Each function takes a matrix `m` and
returns it with the part in `rows` and `columns` replaced, which XLA does without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from icp_jax.backend import current as backend
from icp_jax.backend.products import left_transposed

# LEAF: the largest matrix that goes to LAPACK or the GPU's library whole. PANEL: rows or columns
# per product with a triangular matrix. A GPU is slow at small products and compiles each shape.
LEAF, LEAF_ELSEWHERE = {"cpu": 384}, 2048
PANEL, PANEL_ELSEWHERE = {"cpu": 512}, 2048

Matrix = Float[Array, "i i"]
Range = tuple[int, int]  # start, end

dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
dot_transposed = partial(left_transposed, precision=jax.lax.Precision.HIGHEST)


def inverse_upper(h: Matrix) -> Matrix:
    """Upper triangular U with H⁻¹ = Uᵀ U. Only the upper half of H is read; the rest must be zero.

    U contains NaN if H is not positive definite. With H in quarters A, B, Bᵀ, C, the lower right
    quarter of U is the factor U_C of C, the upper left is the factor U_A of A - K Kᵀ with
    K = B U_Cᵀ, and the upper right is -U_A K U_C.
    """
    return _invert(h, (0, h.shape[0]))


def _invert(m: Matrix, of: Range) -> Matrix:
    """Replace the square `of`, H, by U."""
    if of[1] - of[0] <= LEAF.get(backend.name(), LEAF_ELSEWHERE):
        # with P the reversal of both axes: P H P = L Lᵀ, and U = P L⁻¹ P
        h = with_layout_constraint(_get(m, of, of), Layout((0, 1)))  # keeps LAPACK's layout from m
        low = jax.lax.linalg.cholesky(h[::-1, ::-1], symmetrize_input=False)
        identity = jnp.eye(len(low), dtype=m.dtype)
        inverse = jax.lax.linalg.triangular_solve(low, identity, left_side=True, lower=True)
        return _set(m, of, of, inverse[::-1, ::-1])
    middle = of[0] + (of[1] - of[0]) // 2
    first, second = (of[0], middle), (middle, of[1])
    if of[1] - of[0] <= _panel():  # products with a panel of U read below the diagonal too
        m = _set(m, second, first, jnp.zeros((second[1] - middle, middle - of[0]), m.dtype))
    m = _invert(m, second)
    m = _by_transposed(m, first, second)
    m = _minus_square(m, first, second)
    m = _invert(m, first)
    m = _by_upper(m, first, second)
    return _minus_upper_by(m, first, second)


def _panel() -> int:
    return PANEL.get(backend.name(), PANEL_ELSEWHERE)


def _get(m: Matrix, rows: Range, columns: Range) -> Float[Array, "r c"]:
    return m[slice(*rows), slice(*columns)]


def _set(m: Matrix, rows: Range, columns: Range, part: Float[Array, "r c"]) -> Matrix:
    return jax.lax.dynamic_update_slice(m, part, (rows[0], columns[0]))


def _panels(of: Range) -> Iterator[tuple[Range, Range, Range]]:
    """(panel, start to the panel's end, panel's start to the end), by the halves of `_invert`."""
    if of[1] - of[0] <= _panel():
        yield of, of, of
        return
    middle = of[0] + (of[1] - of[0]) // 2
    for panel, before, after in _panels((of[0], middle)):
        yield panel, before, (after[0], of[1])
    for panel, before, after in _panels((middle, of[1])):
        yield panel, (of[0], before[1]), after


def _by_transposed(m: Matrix, rows: Range, columns: Range) -> Matrix:
    """Replace X by X Uᵀ, where U is the square at `columns`."""
    for panel, _, on in _panels(columns):
        m = _set(m, rows, panel, dot(_get(m, rows, on), _get(m, panel, on).T))
    return m


def _by_upper(m: Matrix, rows: Range, columns: Range) -> Matrix:
    """Replace X by X U, where U is the square at `columns`."""
    for panel, upto, _ in reversed(list(_panels(columns))):
        m = _set(m, rows, panel, dot(_get(m, rows, upto), _get(m, upto, panel)))
    return m


def _minus_upper_by(m: Matrix, rows: Range, columns: Range) -> Matrix:
    """Replace X by -U X, where U is the square at `rows`."""
    for panel, _, on in _panels(rows):
        m = _set(m, panel, columns, -dot(_get(m, panel, on), _get(m, on, columns)))
    return m


def _minus_square(m: Matrix, rows: Range, columns: Range) -> Matrix:
    """Replace the upper half of H, the square at `rows`, by that of H - X Xᵀ."""
    for panel, _, on in _panels(rows):
        less = dot(_get(m, panel, columns), _get(m, on, columns).T)
        m = _set(m, panel, on, _get(m, panel, on) - less)
    return m
