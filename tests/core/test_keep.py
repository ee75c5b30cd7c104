"""Fine-tuning that leaves the zeros where they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icp_jax import keep_zeros

NOISY = optax.noisy_sgd(0.1, key=jax.random.key(2))


@pytest.fixture
def params():
    kernel = jax.random.normal(jax.random.key(0), (64, 32))
    return {"a": {"kernel": jnp.where(kernel > 0, kernel, 0), "bias": jnp.zeros(32)}}


def train(tx, params, steps=3):
    x = jax.random.normal(jax.random.key(1), (16, 64))

    @jax.jit
    def step(params, state):
        def loss(p):
            return jnp.mean((x @ p["a"]["kernel"] + p["a"]["bias"] - 1) ** 2)

        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state, step


@pytest.mark.parametrize("tx", [optax.adamw(1e-2), optax.sgd(0.1), NOISY])
@pytest.mark.parametrize("given", [True, False])
def test_zeros_stay_and_the_rest_moves(params, tx, given):
    kernel = params["a"]["kernel"]
    tuned, _, _ = train(keep_zeros(tx, {"a": {"kernel": kernel != 0}} if given else None), params)
    np.testing.assert_array_equal(tuned["a"]["kernel"] == 0, kernel == 0)
    assert not np.any((tuned["a"]["kernel"] == kernel) & (kernel != 0))
    assert np.all(tuned["a"]["bias"] != 0)


def test_the_masks_are_no_constants_of_the_step(params):
    """They are the state's: the compiled step takes them as arguments."""
    tx = keep_zeros(optax.adam(1e-2))
    _, state, step = train(tx, params, steps=1)
    assert state.keep["a"]["kernel"].dtype == bool and state.keep["a"]["bias"] is None
    other = jax.tree.map(lambda keep: ~keep, state.keep)
    moved, _ = step(params, state._replace(keep=other))
    changed = moved["a"]["kernel"] != params["a"]["kernel"]
    np.testing.assert_array_equal(changed, other["a"]["kernel"])


def test_a_mask_for_what_is_no_param_is_told(params):
    with pytest.raises(KeyError, match="'b'"):
        keep_zeros(optax.sgd(0.1), {"b": None}).init(params)
