import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icp_jax.core.hyper import sample_order, schedule
from icp_jax.core.outcomes import compensation_report
from icp_jax.streaming import transfer, tune


def affine(params, x):
    return x @ params["kernel"] + params["bias"]


def compensate(
    apply, params, x, y, *, epochs=1, lr=1e-4, gamma=1.0, seed=0, again=None, **settings
):
    """The streaming driver's compensation; gives the params and its report."""
    tuning = tune.Tuning(apply, x, y, **settings)
    order = sample_order(seed, epochs, len(x))
    tuned, found = tune.compensate(tuning, params, schedule(lr, gamma, epochs), order, again)
    return tuned, compensation_report(found)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 5, 8)).astype(np.float32)
    true = {"kernel": rng.normal(size=(8, 4)), "bias": rng.normal(size=4)}
    true = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), true)
    start = jax.tree.map(lambda a: a + 0.1, true)
    return start, x, np.asarray(affine(true, x))


def test_lowers_the_loss_and_leaves_its_input_alone(problem):
    params, x, y = problem
    before = jax.tree.map(np.array, params)
    tuned, report = compensate(affine, params, x, y, epochs=5, lr=1e-2, gamma=0.9)
    assert report.after < 0.05 * report.before
    assert len(report.epochs) == 5 and report.epochs[-1] < report.epochs[0]
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.mean((affine(tuned, x) - y) ** 2) < 0.05 * np.mean((affine(params, x) - y) ** 2)


def test_equals_a_plain_optax_loop(problem):
    params, x, y = problem
    tuned, _ = compensate(affine, params, x, y, epochs=2, lr=1e-3, gamma=0.5, seed=7)
    with jax.numpy_dtype_promotion("standard"):
        for epoch in range(2):
            tx = optax.adam(1e-3 * 0.5**epoch)
            state = tx.init(params) if epoch == 0 else state
            for i in np.random.default_rng((7, epoch)).permutation(len(x)):
                grads = jax.grad(lambda p, i=i: jnp.mean((affine(p, x[i]) - y[i]) ** 2))(params)
                updates, state = tx.update(grads, state)
                params = optax.apply_updates(params, updates)
    for a, b in zip(jax.tree.leaves(tuned), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_keep_is_held(problem):
    params, x, y = problem
    mask = np.random.default_rng(1).random((8, 4)) > 0.5
    tuned, report = compensate(affine, params, x, y, epochs=3, lr=1e-2, keep={"kernel": mask})
    assert np.all(np.asarray(tuned["kernel"])[~mask] == 0)
    assert np.all(np.asarray(tuned["kernel"])[mask] != 0)
    assert report.epochs[2] < report.epochs[0]


def test_zero_epochs_change_nothing(problem):
    params, x, y = problem
    tuned, report = compensate(affine, params, x, y, epochs=0)
    assert report.before == report.after and report.epochs == ()
    np.testing.assert_array_equal(tuned["kernel"], params["kernel"])


def test_refuses_what_does_not_pair(problem):
    params, x, y = problem
    with pytest.raises(ValueError, match="24 inputs, 23 targets"):
        compensate(affine, params, x, y[:-1])


def test_the_losses_told_are_of_eight_samples(problem, monkeypatch):
    """However many of them go to the device at once."""
    params, x, y = problem
    x, y = np.tile(x, (128 // len(x) + 1, 1, 1))[:128], np.tile(y, (128 // len(x) + 1, 1, 1))[:128]
    x = x + np.random.default_rng(5).normal(size=x.shape).astype(np.float32)
    at_once = compensate(affine, params, x, y, epochs=0)[1].before
    monkeypatch.setattr(transfer, "GATHER_BYTES", 1)
    one_by_one = compensate(affine, params, x, y, epochs=0)[1].before
    mean = np.mean((np.asarray(affine(params, x[:8])) - y[:8]) ** 2)
    assert at_once == pytest.approx(mean, rel=1e-5)
    assert one_by_one == pytest.approx(mean, rel=1e-5)
