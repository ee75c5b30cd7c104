"""SparseSwaps against every swap tried one by one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icp_jax.core import stats
from icp_jax.core.masks import keep_n_of_m
from icp_jax.core.pruners import wanda
from icp_jax.core.refit import refit
from icp_jax.core.swaps import _diagonal_blocks, best_swap, swaps

DAMPING = 0.01


def problem(inputs, outputs, seed=0):
    rng = np.random.default_rng(seed)
    mix = np.eye(inputs) + 2 * rng.normal(size=(inputs, inputs)) / np.sqrt(inputs)
    x = (rng.normal(size=(8 * inputs, inputs)) * np.exp(rng.normal(size=inputs))) @ mix
    kernel = rng.normal(size=(inputs, outputs)).astype(np.float32)
    return kernel, stats.from_inputs(x.astype(np.float32))


def hessian(moments):
    h = 2 * np.asarray(moments.second, np.float64)
    return h + DAMPING * np.mean(np.diag(h)) * np.eye(len(h))


def loss(h, w, keep):
    lost = np.where(keep, 0, w).astype(np.float64)
    return lost @ h @ lost


def tried(h, w, keep, size):
    """(loss, pruned, revived) of every swap within a group of `size` inputs."""
    for p, u in itertools.permutations(range(len(w)), 2):
        if keep[p] and not keep[u] and p // size == u // size:
            mask = keep.copy()
            mask[p], mask[u] = False, True
            yield loss(h, w, mask), p, u


@pytest.mark.parametrize("size", [8, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_swap_is_that_of_all_tried(seed, size):
    kernel, moments = problem(8, 1, seed)
    w, h = kernel[:, 0], hessian(moments)
    keep = np.asarray(keep_n_of_m(np.random.default_rng(seed).random((8, 1)), size // 2, size))[
        :, 0
    ]
    reach = h @ np.where(keep, 0, w)
    given = (jnp.asarray(a, jnp.float32) for a in (reach, _diagonal_blocks(jnp.asarray(h), size)))
    change, gone, back = jax.jit(best_swap)(jnp.asarray(w), jnp.asarray(keep), *given)
    least, p, u = min(tried(h, w, keep, size))
    assert (int(gone), int(back)) == (p, u)
    np.testing.assert_allclose(change, least - loss(h, w, keep), rtol=1e-4)


@pytest.mark.parametrize("pattern", [(2, 4), pytest.param(None, marks=pytest.mark.slow)])
def test_no_swap_is_left_that_gains(pattern):
    kernel, moments = problem(24, 6)
    h, size = hessian(moments), 24 if pattern is None else 4
    _, keep = wanda(jnp.asarray(kernel), moments, 24 * 3, pattern=pattern)
    new = np.asarray(swaps(jnp.asarray(kernel), keep, moments, pattern=pattern))
    groups = [mask.reshape(-1, size, 6).sum(1) for mask in (new, np.asarray(keep))]
    np.testing.assert_array_equal(*groups)
    before, after = (
        np.array([loss(h, kernel[:, o], np.asarray(mask)[:, o]) for o in range(6)])
        for mask in (keep, new)
    )
    assert np.all(after <= before) and after.sum() < 0.9 * before.sum()
    for o in range(6):
        best = min(tried(h, kernel[:, o], new[:, o], size))[0]
        assert best > after[o] * (1 - 1e-5)


@pytest.mark.parametrize("pattern", [(2, 4), pytest.param(None, marks=pytest.mark.slow)])
def test_with_the_refit_it_is_better_than_the_refit_alone(pattern):
    kernel, moments = problem(64, 32)
    w = jnp.asarray(kernel)
    start, keep = wanda(w, moments, round(0.7 * w.size), pattern=pattern)
    swapped = swaps(w, keep, moments, pattern=pattern)
    both = refit(w, jnp.where(swapped, w, 0), swapped, moments)
    alone = refit(w, start, keep, moments)
    errors = [float(stats.output_error(w, new, moments)) for new in (both, alone)]
    assert errors[0] < 0.9 * errors[1], errors


@pytest.mark.slow
def test_damping_is_traced():
    kernel, moments = problem(24, 6)
    _, keep = wanda(jnp.asarray(kernel), moments, 72)
    each = jax.vmap(lambda d: swaps(jnp.asarray(kernel), keep, moments, d))(jnp.array([0.01, 1.0]))
    np.testing.assert_array_equal(each[0], swaps(jnp.asarray(kernel), keep, moments))
    assert np.all(np.asarray(each).sum(1) == np.asarray(keep).sum(0))
