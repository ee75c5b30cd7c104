"""The upper factor of an inverse by halves, in place: nearly all the work is matrix products.

Half of a triangular matrix is zero, and half of a symmetric one is known: products with them go
panel by panel, so that most of that half is never computed. All functions take a matrix `m` and
give it back with the part in `rows` and `columns` replaced, which XLA does without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from icp_jax import backend
from icp_jax.backend.products import left_transposed

# The largest matrix that LAPACK, or the GPU's library, factors and inverts at once; rows or
# columns of a product with a triangular matrix that are computed at once. A GPU does little at a
# time badly, and each product of another shape costs it time to compile.
LEAF, LEAF_ELSEWHERE = {"cpu": 384}, 2048
PANEL, PANEL_ELSEWHERE = {"cpu": 512}, 2048

Matrix = Float[Array, "i i"]
Range = tuple[int, int]  # start, end

dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
dot_transposed = partial(left_transposed, precision=jax.lax.Precision.HIGHEST)


def inverse_upper(h: Matrix) -> Matrix:
    """U, upper triangular, with H⁻¹ = Uᵀ U; of H its upper half is read, the rest must be zero.

    Not-a-number where H is not positive definite. With H in quarters A, B, Bᵀ, C, the lower right
    quarter of U is the U_C of C, the upper left one the U_A of A - K Kᵀ with K = B U_Cᵀ, and the
    upper right one -U_A K U_C.
    """
    return _invert(h, (0, h.shape[0]))


def _invert(m: Matrix, of: Range) -> Matrix:
    """The square `of`, H, becomes U."""
    if of[1] - of[0] <= LEAF.get(backend.name(), LEAF_ELSEWHERE):
        # with P the reversal of both axes: P H P = L Lᵀ, and U = P L⁻¹ P
        h = with_layout_constraint(_get(m, of, of), Layout((0, 1)))  # LAPACK's would spread to m
        low = jax.lax.linalg.cholesky(h[::-1, ::-1], symmetrize_input=False)
        identity = jnp.eye(len(low), dtype=m.dtype)
        inverse = jax.lax.linalg.triangular_solve(low, identity, left_side=True, lower=True)
        return _set(m, of, of, inverse[::-1, ::-1])
    middle = of[0] + (of[1] - of[0]) // 2
    first, second = (of[0], middle), (middle, of[1])
    if of[1] - of[0] <= _panel():  # products with a panel of U do not stop at the diagonal
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
    """(panel, from the start up to its end, from its start on), by the halves of `_invert`."""
    if of[1] - of[0] <= _panel():
        yield of, of, of
        return
    middle = of[0] + (of[1] - of[0]) // 2
    for panel, before, after in _panels((of[0], middle)):
        yield panel, before, (after[0], of[1])
    for panel, before, after in _panels((middle, of[1])):
        yield panel, (of[0], before[1]), after


def _by_transposed(m: Matrix, rows: Range, columns: Range) -> Matrix:
    """X becomes X Uᵀ, with U the square of the columns."""
    for panel, _, on in _panels(columns):
        m = _set(m, rows, panel, dot(_get(m, rows, on), _get(m, panel, on).T))
    return m


def _by_upper(m: Matrix, rows: Range, columns: Range) -> Matrix:
    """X becomes X U, with U the square of the columns."""
    for panel, upto, _ in reversed(list(_panels(columns))):
        m = _set(m, rows, panel, dot(_get(m, rows, upto), _get(m, upto, panel)))
    return m


def _minus_upper_by(m: Matrix, rows: Range, columns: Range) -> Matrix:
    """X becomes -U X, with U the square of the rows."""
    for panel, _, on in _panels(rows):
        m = _set(m, panel, columns, -dot(_get(m, panel, on), _get(m, on, columns)))
    return m


def _minus_square(m: Matrix, rows: Range, columns: Range) -> Matrix:
    """H, the square of the rows, becomes H - X Xᵀ in its upper half."""
    for panel, _, on in _panels(rows):
        less = dot(_get(m, panel, columns), _get(m, on, columns).T)
        m = _set(m, panel, on, _get(m, panel, on) - less)
    return m
