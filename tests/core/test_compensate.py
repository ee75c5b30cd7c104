"""`core.compensate` as a function: any optimizer and loss, under jit, vmap, jvp and grad."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icp_jax.core.compensate import compensate
from icp_jax.core.fate import Fate
from icp_jax.core.hyper import sample_order, schedule


def layer(params, x):
    return jnp.tanh(x @ params["kernel"] + params["bias"])


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    true = {"kernel": rng.normal(size=(8, 4)), "bias": rng.normal(size=4)}
    true = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), true)
    x = jnp.asarray(rng.normal(size=(24, 5, 8)), jnp.float32)
    return jax.tree.map(lambda a: a + 0.1, true), x, layer(true, x)


def close(a, b, rtol=1e-5):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-6)


def test_jit_and_map_and_vmap_over_the_rate_agree(problem):
    params, x, y = problem
    rates = jnp.array([1e-2, 1e-3])
    one = [compensate(layer, params, x, y, lr=float(r), gamma=0.5, epochs=3) for r in rates]

    def tuned(lr):
        return compensate(layer, params, x, y, lr=lr, gamma=0.5, epochs=3)

    for every in (jax.vmap(tuned)(rates), jax.lax.map(tuned, rates)):
        for k, single in enumerate(one):
            close(jax.tree.map(lambda leaf, k=k: leaf[k], every), single, rtol=1e-4)
    close(jax.jit(tuned)(rates[0]), one[0])


def test_equals_a_plain_loop_with_any_optimizer_and_loss(problem):
    params, x, y = problem
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=1e-3))
    order = sample_order(5, 2, len(x))

    def loss(outputs, targets):
        return jnp.mean(optax.huber_loss(outputs, targets))

    tuned, _ = compensate(layer, params, x, y, tx=tx, loss=loss, order=order)
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(params)
        for i in order.reshape(-1):
            grads = jax.grad(lambda p, i=i: loss(layer(p, x[i : i + 1]), y[i : i + 1]))(params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
    close(tuned, params)


def test_one_rate_an_epoch_is_the_schedule(problem):
    params, x, y = problem
    given = compensate(layer, params, x, y, lr=schedule(1e-2, 0.5, 3), epochs=3)
    close(given, compensate(layer, params, x, y, lr=1e-2, gamma=0.5, epochs=3), rtol=0)
    with pytest.raises(ValueError, match="3 rates for 2 epochs"):
        compensate(layer, params, x, y, lr=schedule(1e-2, 0.5, 3), epochs=2)


def test_a_rate_that_cannot_be_set_is_refused(problem):
    params, x, y = problem
    with pytest.raises(ValueError, match="inject_hyperparams"):
        compensate(layer, params, x, y, tx=optax.sgd(1e-3), lr=1e-2)
    injected = optax.inject_hyperparams(optax.sgd)(1e-3)
    close(
        compensate(layer, params, x, y, tx=injected, lr=1e-2, seed=np.int64(3)),
        compensate(layer, params, x, y, tx=optax.sgd(1e-2), seed=3),
    )


def test_gradients_are_those_of_differences(problem):
    """Of the loss after tuning: over the rate, backwards and forwards, and over the inputs."""
    params, x, y = problem

    def after(lr, x):
        return compensate(layer, params, x, y, tx=SGD, lr=lr)[1].after

    at, step = jnp.float32(0.05), 1e-3
    difference = (float(after(at + step, x)) - float(after(at - step, x))) / (2 * step)
    backward, by_input = jax.grad(after, argnums=(0, 1))(at, x)
    _, forward = jax.jvp(after, (at, x), (jnp.float32(1), jnp.zeros_like(x)))
    assert float(backward) == pytest.approx(difference, rel=0.02)
    assert float(forward) == pytest.approx(float(backward), rel=1e-3)
    assert np.all(np.isfinite(by_input)) and np.any(by_input != 0)


SGD = optax.inject_hyperparams(optax.sgd)(0.1)


def test_masks_are_held(problem):
    params, x, y = problem
    keep = {"kernel": jnp.asarray(np.random.default_rng(1).random((8, 4)) > 0.5)}
    tuned, found = compensate(layer, params, x, y, epochs=3, lr=1e-2, keep=keep)
    assert np.all((np.asarray(tuned["kernel"]) != 0) == np.asarray(keep["kernel"]))
    assert found.epochs[2] < found.epochs[0] and found.fate == Fate.KEPT


@pytest.mark.parametrize("undo,same", [("all", True), ("probe", True), ("never", False)])
def test_a_loss_that_rose_is_undone_where_asked(problem, undo, same):
    params, x, y = problem
    tuned, found = compensate(layer, params, x, y, lr=50.0, undo=undo)
    assert found.fate == Fate.ROSE and found.after > found.before
    assert np.array_equal(tuned["kernel"], params["kernel"]) == same


def test_samples_that_are_not_finite_are_told(problem):
    params, x, y = problem
    tuned, found = compensate(layer, params, x, y.at[7].set(jnp.nan))
    assert found.fate == Fate.NOT_FINITE
    close(tuned, params)


def test_inputs_and_targets_must_be_as_many(problem):
    params, x, y = problem
    with pytest.raises(ValueError, match="24 inputs, 23 targets"):
        compensate(layer, params, x, y[1:])
