"""The solver against the formulas in float64, and what it promises on any input."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from icp_jax.core import stats
from icp_jax.core.pruners import factor, sparsegpt, walk
from icp_jax.core.pruners.sparsegpt_block import _share
from icp_jax.core.quantize import make_grid


def problem(inputs, outputs, seed=0, tokens=None, dead=()):
    """A kernel and correlated inputs, well conditioned unless there are few tokens."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens or 8 * inputs + 64, inputs))
    mix = np.eye(inputs) + 0.5 * rng.normal(size=(inputs, inputs)) / np.sqrt(inputs)
    x = (x @ mix).astype(np.float32)
    x[:, list(dead)] = 0
    return rng.normal(size=(inputs, outputs)).astype(np.float32), x


def compare(kernel, x, sparsity=0.6, pattern=None, bits=None):
    moments = stats.from_inputs(x)
    budget = round(sparsity * kernel.size)
    grid = make_grid(jnp.asarray(kernel), bits) if bits else None
    new, keep = sparsegpt(kernel, factor(moments), budget, pattern=pattern, grid=grid)
    new, keep = np.asarray(new), np.asarray(keep)
    second = x.astype(np.float64).T @ x.astype(np.float64) / len(x)
    want, want_keep, _ = reference.sparsegpt(kernel, second, budget, pattern=pattern, bits=bits)
    if pattern is None:
        assert (~keep).sum() == budget
    assert np.all(new[~keep] == 0)
    return new, keep, want, want_keep


def assert_same(new, keep, want, want_keep):
    np.testing.assert_array_equal(keep, want_keep)
    assert np.linalg.norm(new - want) <= 1e-4 * np.linalg.norm(want)
    np.testing.assert_allclose(new, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


SHAPES = [(128, 64), (200, 48), (96, 1), (300, 130), (40, 16), (1000, 16)]  # the last: two spans


@pytest.mark.parametrize("inputs,outputs", SHAPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.83])
def test_unstructured(inputs, outputs, sparsity):
    assert_same(*compare(*problem(inputs, outputs), sparsity=sparsity))


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (1, 4), (3, 5)])
@pytest.mark.parametrize("inputs,outputs", [(120, 40), (200, 32), (280, 1), (1000, 8)])
def test_n_of_m(pattern, inputs, outputs):
    new, keep, want, want_keep = compare(*problem(inputs, outputs), pattern=pattern)
    assert_same(new, keep, want, want_keep)
    groups = keep.reshape(-1, pattern[1], outputs).sum(1)
    assert np.all(groups == pattern[0])


def on_grid_alike(new, keep, want, want_keep, kernel, bits):
    """Rounding to a grid turns float32 noise into whole steps where a value lies on the border.

    Such a step changes everything later in its output, so outputs are compared whole: nearly all
    must agree to 1e-4, and every value must lie on its output's grid.
    """
    scale, zero, levels = reference.minmax_grid(kernel.T.astype(np.float64), bits)
    level = new.T / scale[:, None] + zero[:, None]
    assert np.abs(level - np.round(level)).max() < 1e-3
    assert level.min() > -1e-3 and level.max() < levels + 1e-3
    close = np.abs(new - want).max(0) <= 1e-4 * np.abs(want).max(0)
    same = (keep == want_keep).all(0)
    assert (close & same).mean() > 0.95, (close & same).mean()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("pattern", [None, (2, 4), (4, 8)])
def test_with_a_grid(bits, pattern):
    kernel, x = problem(200, 64)
    on_grid_alike(*compare(kernel, x, 0.5, pattern, bits), kernel, bits)


def test_dead_inputs():
    kernel, x = problem(140, 24, dead=(0, 7, 130, 139))
    new, keep, want, want_keep = compare(kernel, x)
    assert_same(new, keep, want, want_keep)
    assert np.all(new[[0, 7, 130, 139]] == 0)


def test_singular_hessian_is_carried_by_the_damping():
    kernel, x = problem(160, 32, tokens=60)
    new, _, want, _ = compare(kernel, x)
    assert np.all(np.isfinite(new))
    moments = stats.from_inputs(x)
    ours = stats.output_error(jnp.asarray(kernel), jnp.asarray(new), moments)
    theirs = stats.output_error(jnp.asarray(kernel), jnp.asarray(want, jnp.float32), moments)
    np.testing.assert_allclose(ours, theirs, rtol=1e-2)


@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("pattern,bits", [(None, None), ((2, 4), None), (None, 4), ((2, 4), 3)])
def test_the_walk_knows_what_the_output_lost(damping, pattern, bits):
    kernel, x = problem(172, 24)
    grid = make_grid(jnp.asarray(kernel), bits) if bits else None
    given = factor(stats.from_inputs(x), damping)
    mine = jnp.asarray(kernel)
    new, keep, lost = walk(mine, given, 2000, pattern=pattern, grid=grid)
    np.testing.assert_array_equal(mine, kernel)  # in the loop the result takes its memory
    same = sparsegpt(kernel, given, 2000, pattern=pattern, grid=grid)
    np.testing.assert_array_equal(new, same[0])
    np.testing.assert_array_equal(keep, same[1])
    want = np.sum(np.square(x.astype(np.float64) @ (kernel - np.asarray(new)))) / len(x)
    np.testing.assert_allclose(lost, want, rtol=1e-5)


def test_factor_is_the_cholesky_of_the_inverse():
    kernel, x = problem(100, 4)
    second = x.astype(np.float64).T @ x / len(x)
    _, _, u = reference.sparsegpt(kernel, second, 0)
    upper = np.asarray(factor(stats.from_inputs(x)).upper)
    np.testing.assert_allclose(upper, u, atol=1e-4 * np.abs(u).max())
    assert np.all(np.tril(upper, -1) == 0)


def test_only_the_upper_half_of_the_moments_is_read():
    kernel, x = problem(140, 8)
    whole = stats.from_inputs(x)
    np.testing.assert_array_equal(whole.second, whole.second.T)
    upper = whole._replace(second=jnp.triu(whole.second))
    np.testing.assert_array_equal(factor(upper).upper, factor(whole).upper)
    energies = [stats.output_energy(jnp.asarray(kernel), m) for m in (upper, whole)]
    assert energies[0] == energies[1]


def test_ties_go_to_the_lowest_input_then_output():
    kernel = np.ones((128, 4), np.float32)
    identity = stats.Moments(jnp.eye(128, dtype=jnp.float32), jnp.int32(128))
    _, keep = sparsegpt(kernel, factor(identity), 10)
    gone = np.flatnonzero(~np.asarray(keep).ravel())
    np.testing.assert_array_equal(gone, np.arange(10))


@settings(max_examples=12, deadline=None)
@given(
    inputs=st.integers(2, 150),
    outputs=st.integers(1, 20),
    sparsity=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)
def test_any_shape(inputs, outputs, sparsity, seed):
    assert_same(*compare(*problem(inputs, outputs, seed), sparsity=sparsity))


@settings(max_examples=8, deadline=None)
@given(
    groups=st.integers(1, 30),
    outputs=st.integers(1, 20),
    pattern=st.sampled_from([(2, 4), (4, 8)]),
    seed=st.integers(0, 99),
)
def test_any_number_of_groups(groups, outputs, pattern, seed):
    assert_same(*compare(*problem(groups * pattern[1], outputs, seed), pattern=pattern))


@settings(max_examples=6, deadline=None)
@given(
    groups=st.integers(4, 30),
    pattern=st.sampled_from([None, (2, 4), (4, 8)]),
    bits=st.sampled_from([3, 4]),
    seed=st.integers(0, 99),
)
def test_any_number_of_inputs_with_a_grid(groups, pattern, bits, seed):
    kernel, x = problem(groups * 8, 64, seed)
    on_grid_alike(*compare(kernel, x, 0.5, pattern, bits), kernel, bits)


def test_groups_wider_than_the_block():
    """The walk then goes by whole groups."""
    kernel, x = problem(256, 24)
    prepared = factor(stats.from_inputs(x))
    for (n, m), block in (((128, 256), 128), ((2, 4), 2)):
        _, keep = sparsegpt(kernel, prepared, 0, pattern=(n, m), block=block)
        assert np.all(np.asarray(keep).reshape(-1, m, 24).sum(axis=1) == n)


def test_shares_of_the_widest_layers():
    """53248 inputs, Llama-3.1-405B's: the product inside passes 2³¹."""
    inputs, budget = 53248, 53248 * 16384 - 1
    for end in (1, 127, 53000, inputs):
        found = _share(jnp.int32(budget), jnp.int32(end), inputs)
        assert int(found) == budget * end // inputs
