"""ALPS (Meng et al., 2024): choose mask and weights together by ADMM, then refit the weights.

ADMM splits the kernel into B, which reproduces the outputs, and D, which has the zeros, and draws
them together. One eigendecomposition of H serves every penalty ρ, which grows until D's mask stays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from icp_jax.backend import current as backend
from icp_jax.core.least_squares import ITERATIONS, solve
from icp_jax.core.masks import keep_best
from icp_jax.core.pruners.checked import checked
from icp_jax.core.pruners.hessian import damped
from icp_jax.core.pruners.triangular import dot, dot_transposed
from icp_jax.core.scaling import TOP, lifted, lowered
from icp_jax.core.stats import Moments

MOST, TYPICAL = 300, 30  # iterations; trained layers were seen to need 30 to 42
EVERY = 3  # iterations between two looks at how much of the mask changed
RHO = 0.1  # the first penalty
# the change, as a share of the kept weights, above which the penalty grows by this factor
GROWTH = ((0.0, 1.1), (0.005, 1.2), (0.1, 1.3))


# for the plan, divided by inputs² · outputs: two products an iteration, and those of the refit
FLOPS = 2.0 * (2 * TYPICAL + ITERATIONS + 3)


class Spectrum(NamedTuple):
    """The damped H of a tap, scaled to ones on its diagonal: Q Λ Qᵀ. Shared by all its linears."""

    hessian: Float[Array, "i i"]
    vectors: Float[Array, "i i"]  # Q
    values: Float[Array, "i"]  # the diagonal of Λ
    scale: Float[Array, "i"]  # of the kernel's inputs, at most 1; the rest of H, up to a factor
    dead: Bool[Array, "i"]  # inputs that are always zero


@jax.jit
def spectrum(moments: Moments, damping: float | Float[Array, ""] = 0.01) -> Spectrum:
    """The eigendecomposition of the damped H. `values` contains NaN if it is not positive definite.

    float32 is enough: scaled, no eigenvalue is above the number of inputs, and the damping keeps
    the smallest above the rounding. Where it does not, it is raised, see `damping`.
    """
    h = damped(moments, damping)
    scale = jnp.sqrt(jnp.diagonal(h.upper))
    scaled = h.whole / scale[:, None] / scale
    # batched calls of LAPACK in one program can deadlock on the CPU
    decompose = jax.custom_batching.sequential_vmap(_eigh) if backend.is_host() else _eigh
    values, vectors = decompose(scaled)
    values = jnp.where(values > 0, values, jnp.nan)
    return Spectrum(scaled, vectors, values, scale / jnp.max(scale), h.dead)


def _eigh(h: Float[Array, "i i"]) -> tuple[Float[Array, "i"], Float[Array, "i i"]]:
    values, vectors = jnp.linalg.eigh(h, symmetrize_input=False)
    return values, vectors


@checked
@partial(jax.jit, static_argnames=("pattern",))
def alps(
    kernel: Float[Array, "i o"],
    spectrum: Spectrum,
    budget: Int[Array, ""],
    *,
    pattern: tuple[int, int] | None = None,
) -> tuple[Float[Array, "i o"], Bool[Array, "i o"]]:
    """Prune `budget` weights of the whole kernel, or to `pattern`. Returns (kernel, keep).

    The kept weights are the best for the mask, see `refit`. All weights of dead inputs are pruned
    first; if they exceed the budget, more than `budget` are pruned. Ties go to the lowest (input,
    output).
    """
    chex.assert_shape(spectrum.hessian, (len(kernel), len(kernel)))
    w, shift = lifted(kernel)
    scale = spectrum.scale[:, None]
    w = jnp.where(spectrum.dead[:, None], 0.0, w) * scale
    sparse, keep = _admm(w, spectrum, partial(keep_best, budget=budget, pattern=pattern))
    keep = keep & ~spectrum.dead[:, None]
    sparse, unit = jnp.where(keep, sparse, 0), 2.0**-TOP  # so that squares stay finite
    fitted = solve(spectrum.hessian, w * unit, sparse * unit, keep) / unit
    new = jnp.where(fitted == 0, sparse, fitted) / scale  # what was too small for the unit
    return lowered(new, shift, kernel.dtype), keep


class State(NamedTuple):
    """ADMM after some iterations."""

    sparse: Float[Array, "i o"]  # D
    keep: Bool[Array, "i o"]  # D's mask
    dual: Float[Array, "i o"]  # V
    rho: Float[Array, ""]
    seen: Bool[Array, "i o"]  # the mask at the last look
    stays: Bool[Array, ""]  # whether it was the mask of the look before
    iterations: Int[Array, ""]


def _admm(
    w: Float[Array, "i o"], given: Spectrum, mask: Callable[[Array], Bool[Array, "i o"]]
) -> tuple[Float[Array, "i o"], Bool[Array, "i o"]]:
    """(D, its mask) for scaled weights. mask: from scores."""
    aim, first = dot(given.hessian, w), mask(w)
    kept = jnp.maximum(jnp.sum(first, dtype=jnp.int32), 1).astype(w.dtype)

    def iterate(s: State) -> State:
        turned = dot_transposed(given.vectors, aim - s.dual + s.rho * s.sparse)
        b = dot(given.vectors, turned / (given.values + s.rho)[:, None])
        wanted = b + s.dual / s.rho
        keep = mask(wanted)
        sparse = jnp.where(keep, wanted, 0)
        dual = s.dual + s.rho * (b - sparse)
        return State(sparse, keep, dual, s.rho, s.seen, s.stays, s.iterations + 1)

    def look(s: State) -> State:
        changed = jnp.sum(s.keep != s.seen, dtype=jnp.int32).astype(w.dtype) / kept
        factor = jnp.ones_like(s.rho)
        for share, growth in GROWTH:
            factor = jnp.where(changed > share, growth, factor)
        return s._replace(rho=s.rho * factor, seen=s.keep, stays=changed == 0)

    def between_looks(s: State) -> State:
        return look(jax.lax.fori_loop(0, EVERY, lambda _, now: iterate(now), s))

    rho, iterations = jnp.asarray(RHO, w.dtype), jnp.int32(0)
    start = State(
        jnp.where(first, w, 0), first, jnp.zeros_like(w), rho, first, jnp.asarray(False), iterations
    )
    end = jax.lax.while_loop(lambda s: ~s.stays & (s.iterations < MOST), between_looks, start)
    return end.sparse, end.keep
