"""The two-stream correction: nearer to the dense outputs, at full strength the least squares."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from icp_jax.core import stats
from icp_jax.core.pruners import factor, sparsegpt
from icp_jax.core.two_streams import corrected, cross_moment


def problem(noise, seed=0, tokens=600, inputs=32, outputs=12):
    """(kernel, dense inputs, sparse inputs): the sparse ones turned a little, with noise."""
    rng = np.random.default_rng(seed)
    mix = np.eye(inputs) + rng.normal(size=(inputs, inputs)) / np.sqrt(inputs)
    dense = rng.normal(size=(tokens, inputs)) @ mix
    turn = np.eye(inputs) + noise * rng.normal(size=(inputs, inputs)) / np.sqrt(inputs)
    sparse = dense @ turn + noise * rng.normal(size=dense.shape)
    kernel = rng.normal(size=(inputs, outputs))
    return tuple(np.float32(a) for a in (kernel, dense, sparse))


def error(kernel, dense, sparse, new):
    """‖dense outputs - outputs from the sparse inputs‖², in float64."""
    kernel, dense, sparse, new = (np.float64(a) for a in (kernel, dense, sparse, new))
    return np.sum(np.square(dense @ kernel - sparse @ new))


def test_at_full_strength_it_is_the_least_squares():
    kernel, dense, sparse = problem(0.3)
    given = factor(stats.from_inputs(sparse), 1e-6)
    new = corrected(jnp.asarray(kernel), given, cross_moment(sparse, dense), 1.0)
    want = np.linalg.lstsq(np.float64(sparse), np.float64(dense) @ np.float64(kernel))[0]
    np.testing.assert_allclose(new, want, atol=1e-3 * np.abs(want).max())


@settings(max_examples=20, deadline=None)
@given(
    noise=st.floats(0, 3),
    strength=st.floats(0, 1),
    damping=st.floats(1e-3, 1),
    seed=st.integers(0, 99),
)
def test_no_further_from_the_dense_outputs(noise, strength, damping, seed):
    kernel, dense, sparse = problem(noise, seed)
    given = factor(stats.from_inputs(sparse), np.float32(damping))
    cross = cross_moment(sparse, dense)
    new = corrected(jnp.asarray(kernel), given, cross, np.float32(strength))
    before = error(kernel, dense, sparse, kernel)
    after = error(kernel, dense, sparse, new)
    assert after <= before * (1 + 1e-5) + 1e-6
    if noise > 0.1 and strength > 0.1:
        assert after < before


def test_a_layer_pruned_after_it_is_nearer_too():
    """Also on tokens that it has not seen."""
    kernel, dense, sparse = problem(0.3, tokens=1200)
    seen, new = slice(0, 600), slice(600, 1200)
    given = factor(stats.from_inputs(sparse[seen]))
    cross, w = cross_moment(sparse[seen], dense[seen]), jnp.asarray(kernel)
    pruned = [sparsegpt(aim, given, w.size // 2)[0] for aim in (w, corrected(w, given, cross, 0.5))]
    for part in (seen, new):
        plain, better = (error(kernel, dense[part], sparse[part], k) for k in pruned)
        assert better < 0.95 * plain


def test_strength_and_damping_are_traced():
    kernel, dense, sparse = problem(0.3)
    moments, cross, w = stats.from_inputs(sparse), cross_moment(sparse, dense), jnp.asarray(kernel)
    points = jnp.array([0.0, 0.5]), jnp.array([0.01, 0.1])
    each = jax.vmap(lambda c, d: corrected(w, factor(moments, d), cross, c))(*points)
    np.testing.assert_array_equal(each[0], w)
    alone = corrected(w, factor(moments, 0.1), cross, 0.5)
    np.testing.assert_allclose(each[1], alone, rtol=1e-4, atol=1e-5)
