"""The refit against least squares in float64, and that it makes no output worse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icp_jax.core import stats
from icp_jax.core.pruners import METHODS
from icp_jax.core.refit import refit

DAMPING = 0.01


def problem(inputs, outputs, seed=0, spread=1.0, tokens=None):
    """(kernel, moments) of correlated inputs whose sizes differ by e^spread."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens or 8 * inputs, inputs)) * np.exp(spread * rng.normal(size=inputs))
    x = x @ (np.eye(inputs) + 0.5 * rng.normal(size=(inputs, inputs)) / np.sqrt(inputs))
    kernel = rng.normal(size=(inputs, outputs)).astype(np.float32)
    return jnp.asarray(kernel), stats.from_inputs(x.astype(np.float32))


def hessian(moments, damping=DAMPING):
    """The damped H in float64, from its definition."""
    h = 2 * np.asarray(moments.second, np.float64)
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    return h + damping * np.mean(np.diag(h)) * np.eye(len(h))


def errors(h, kernel, new):
    """tr((W - W₀)ᵀ H (W - W₀)) of each output, in float64."""
    lost = np.asarray(new, np.float64) - np.asarray(kernel, np.float64)
    return np.sum(lost * (h @ lost), axis=0)


def least_squares(h, kernel, keep):
    """The exact minimum for the mask, output by output."""
    want, right = np.zeros(kernel.shape), h @ np.asarray(kernel, np.float64)
    for o in range(kernel.shape[1]):
        at = np.flatnonzero(keep[:, o])
        want[at, o] = np.linalg.solve(h[np.ix_(at, at)], right[at, o])
    return want


def pruned(method, kernel, moments):
    method = METHODS[method]
    budget = round(0.7 * kernel.size)
    given = method.prepare(moments, DAMPING)
    new, keep, *_ = method.prune(jnp.array(kernel), given, budget)
    return new, keep


def test_many_iterations_give_the_least_squares():
    kernel, moments = problem(40, 24)
    keep = jnp.asarray(np.random.default_rng(0).random(kernel.shape) > 0.6)
    start = jnp.where(keep, kernel, 0)
    new = refit(kernel, start, keep, moments, iterations=60)
    h = hessian(moments)
    want = least_squares(h, kernel, np.asarray(keep))
    np.testing.assert_allclose(new, want, atol=1e-3 * np.abs(want).max())
    least = errors(h, kernel, want)
    np.testing.assert_allclose(errors(h, kernel, new), least, rtol=1e-4)


@pytest.mark.parametrize("method", ["sparsegpt", pytest.param("wanda", marks=pytest.mark.slow)])
def test_ten_iterations_come_close(method):
    kernel, moments = problem(128, 64)
    start, keep = pruned(method, kernel, moments)
    new, h = refit(kernel, start, keep, moments), hessian(moments)
    before, after = (errors(h, kernel, w).sum() for w in (start, new))
    least = errors(h, kernel, least_squares(h, kernel, np.asarray(keep))).sum()
    assert after - least < 0.01 * (before - least)


@settings(max_examples=40, deadline=None)
@given(
    sparsity=st.floats(0, 1),
    spread=st.floats(0, 4),
    few=st.booleans(),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e18, 1e30]),
    noise=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
)
def test_no_output_gets_worse(sparsity, spread, few, scale, noise, seed):
    """Of ill-conditioned inputs, too few tokens, extreme weights, any mask and any start."""
    shape = (24, 10)
    kernel, moments = problem(*shape, seed, spread, tokens=3 if few else None)
    kernel = kernel * jnp.float32(scale)
    rng = np.random.default_rng(seed)
    keep = rng.random(shape) >= sparsity
    start = np.where(keep, kernel + noise * scale * rng.normal(size=shape), 0)
    start = jnp.asarray(start, jnp.float32)
    new, h = refit(kernel, start, jnp.asarray(keep), moments), hessian(moments)
    assert np.all(np.asarray(new)[~keep] == 0)
    assert np.all(errors(h, kernel, new) <= errors(h, kernel, start) * (1 + 1e-5))


def test_dead_inputs_and_outputs_without_weights():
    kernel, moments = problem(24, 10)
    second = np.array(moments.second)
    second[[3, 7]] = second[:, [3, 7]] = 0
    moments = moments._replace(second=jnp.asarray(second))
    keep = jnp.ones(kernel.shape, bool).at[:, 0].set(False).at[jnp.array([3, 7])].set(False)
    new = refit(kernel, jnp.where(keep, kernel, 0), keep, moments)
    assert np.all(np.asarray(new)[~np.asarray(keep)] == 0) and np.all(np.isfinite(new))


def test_dtypes_vmap_and_the_upper_half():
    kernel, moments = problem(24, 10)
    keep = jnp.asarray(np.random.default_rng(0).random(kernel.shape) > 0.6)
    start = jnp.where(keep, kernel, 0)
    want = refit(kernel, start, keep, moments)
    upper = moments._replace(second=jnp.triu(moments.second))
    np.testing.assert_array_equal(refit(kernel, start, keep, upper), want)
    narrow = refit(kernel, start.astype(jnp.bfloat16), keep, moments)
    assert narrow.dtype == jnp.bfloat16
    each = jax.vmap(lambda d: refit(kernel, start, keep, moments, d))(jnp.array([0.01, 0.1]))
    np.testing.assert_allclose(each[0], want, rtol=1e-4, atol=1e-5)
