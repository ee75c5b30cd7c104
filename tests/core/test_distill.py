"""The global pass: zeros held, predictions nearer, and the best epoch kept."""

import jax
import numpy as np
import pytest

import icp_jax
from icp_jax.core.distill import cosine, distill, steps
from icp_jax.errors import InputError


@pytest.fixture(scope="module")
def dense(llama):
    return llama


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(1).integers(3, 97, (12, 24)).astype(np.int32)


@pytest.fixture(scope="module")
def pruned(dense, windows):
    return icp_jax.prune(dense, windows, method="wanda", pattern="2:4")[0]


def kernels(model):
    blocks = model.params["blocks"].values()
    return [np.asarray(b[s.name]["kernel"]) for b in blocks for s in model.family.linears]


def test_it_comes_nearer_and_keeps_its_zeros(dense, pruned, windows):
    tuned, metrics = icp_jax.distill(pruned, dense, windows, epochs=2, lr=3e-3)
    assert metrics.best > 0 and min(metrics.heldout[1:]) < metrics.heldout[0]
    assert metrics.steps.shape == (2, 11)
    for old, new in zip(kernels(pruned), kernels(tuned), strict=True):
        assert old.dtype == new.dtype and not np.array_equal(old, new)
        assert not np.any(new[old == 0])
    for part in ("embed", "head"):
        same = jax.tree.map(np.array_equal, pruned.params[part], tuned.params[part])
        assert all(jax.tree.leaves(same))
    measured = icp_jax.evaluate(tuned, windows[-1:], against=dense).kl
    assert measured < icp_jax.evaluate(pruned, windows[-1:], against=dense).kl


def test_a_rate_that_does_harm_changes_nothing(dense, pruned, windows):
    kept, metrics = icp_jax.distill(pruned, dense, windows, lr=10.0)
    assert metrics.best == 0
    assert all(map(np.array_equal, kernels(kept), kernels(pruned)))


def test_the_divergence_is_that_of_evaluate(dense, pruned, windows):
    """Which leaves out the last position; with one more token, both have the same ones."""
    _, metrics = icp_jax.distill(pruned, dense, windows[:, :-1], heldout=windows[:2, :-1])
    expected = icp_jax.evaluate(pruned, windows[:2], against=dense).kl
    assert metrics.heldout[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_rates_can_be_mapped(dense, pruned, windows):
    order = steps(8).order
    rates = np.stack([cosine(lr, 8)[None] for lr in (1e-4, 3e-3)])

    def found(rates):
        trees = pruned.params, dense.params
        parts = windows[:8], windows[8:]
        return distill(dense.family, *trees, *parts, rates=rates, order=order)[1].heldout

    low, high = jax.jit(jax.vmap(found))(rates)
    assert high[1] < low[1] < low[0] == pytest.approx(high[0])


def test_a_cosine_rises_and_falls():
    rates = cosine(2e-3, 50)
    assert rates.shape == (50,) and rates[4] == rates[5] == np.float32(2e-3)
    assert np.all(np.diff(rates[:5]) > 0) and np.all(np.diff(rates[5:]) < 0) and rates[-1] < 1e-5


def test_what_cannot_be_distilled_is_one_line(dense, pruned, windows, opt_folder):
    with pytest.raises(InputError, match="other shapes: give the model that was pruned"):
        icp_jax.distill(pruned, icp_jax.load(opt_folder), windows)
    with pytest.raises(InputError, match="one window leaves none to hold out"):
        icp_jax.distill(pruned, dense, windows[:1])
    with pytest.raises(InputError, match="lr positive"):
        icp_jax.distill(pruned, dense, windows, lr=0.0)
    with pytest.raises(InputError, match="batch must be at least 1"):
        icp_jax.distill(pruned, dense, windows, batch=0)
