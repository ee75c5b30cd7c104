"""What all pruners share: exact counts, exact zeros, patterns, and the order of their errors."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icp_jax.core import stats
from icp_jax.core.pruners import METHODS


def problem(inputs=96, outputs=40, seed=0):
    rng = np.random.default_rng(seed)
    mix = np.eye(inputs) + rng.normal(size=(inputs, inputs)) / np.sqrt(inputs)
    x = (rng.normal(size=(1000, inputs)) * np.exp(rng.normal(size=inputs))) @ mix
    kernel = rng.normal(size=(inputs, outputs)).astype(np.float32)
    return kernel, stats.from_inputs(x.astype(np.float32))


def run(method, kernel, moments, budget, **options):
    method = METHODS[method]
    new, keep, *_ = method.prune(kernel, method.prepare(moments, 0.01), budget, **options)
    return np.asarray(new), np.asarray(keep)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10, deadline=None)
@given(budget=st.integers(0, 96 * 40 - 1))
def test_exact_count(method, budget):
    kernel, moments = problem()
    new, keep = run(method, kernel, moments, budget)
    assert (~keep).sum() == budget == (new == 0).sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n,m", [(2, 4), (4, 8), (1, 2), (2, 3)])
def test_pattern_in_every_group(method, n, m):
    kernel, moments = problem()
    new, keep = run(method, kernel, moments, 0, pattern=(n, m))
    assert np.all(keep.reshape(-1, m, 40).sum(1) == n)
    assert np.all((new != 0).reshape(-1, m, 40).sum(1) == n)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_sparsegpt_below_wanda_below_magnitude(seed, sparsity):
    kernel, moments = problem(seed=seed)
    budget = round(sparsity * kernel.size)
    error = {
        method: float(
            stats.output_error(
                jnp.asarray(kernel), jnp.asarray(run(method, kernel, moments, budget)[0]), moments
            )
        )
        for method in ("sparsegpt", "wanda", "magnitude")
    }
    assert error["sparsegpt"] < error["wanda"] < error["magnitude"], error


def test_wanda_compares_within_an_output():
    kernel, moments = problem()
    _, keep = run("wanda", kernel, moments, 40 * 48 + 7)
    gone = (~keep).sum(0)
    assert sorted(set(gone)) == [48, 49] and (gone == 49).sum() == 7
    scores = np.abs(kernel) * np.sqrt(np.diag(np.asarray(moments.second)))[:, None]
    for output in range(40):
        assert scores[~keep[:, output], output].max() <= scores[keep[:, output], output].min()


def test_magnitude_is_the_smallest_of_the_tensor():
    kernel, _ = problem()
    _, keep = run("magnitude", kernel, None, 1234)
    assert np.abs(kernel)[~keep].max() <= np.abs(kernel)[keep].min()
