"""A model in memory is a pytree: JAX, Optax and Orbax take it as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import icp_jax


@pytest.fixture(scope="module")
def model(opt_folder):
    return icp_jax.load(opt_folder, dtype=np.float32)


def test_leaves_are_the_params(model):
    assert jax.tree.structure(model.params).num_leaves == len(jax.tree.leaves(model))
    twice = jax.tree.map(lambda leaf: 2 * leaf, model)
    assert isinstance(twice, icp_jax.Model) and twice.config == model.config
    np.testing.assert_array_equal(
        twice.params["embed"]["tokens"]["embedding"],
        2 * model.params["embed"]["tokens"]["embedding"],
    )
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(model)]
    assert ".params['blocks']['0']['fc1']['kernel']" in paths


def test_under_jit_and_two_loads_share_a_program(model, opt_folder, tokens):
    traced = []

    @jax.jit
    def logits(model, tokens):
        traced.append(1)
        return model(tokens)

    found = logits(model, tokens)
    np.testing.assert_allclose(found, model.logits(tokens), rtol=1e-4, atol=1e-5)
    again = icp_jax.load(opt_folder, dtype=np.float32)
    np.testing.assert_array_equal(logits(again, tokens), found)
    assert len(traced) == 1


def test_a_training_step_with_optax(model, tokens):
    tx = icp_jax.keep_zeros(optax.adam(1e-3))

    def loss(model):
        logits = model(tokens)[:, :-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.mean(losses)

    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(jax.grad(loss)(model), tx.init(model), model)
        trained = optax.apply_updates(model, updates)
    assert float(loss(trained)) < float(loss(model))


def test_through_orbax(model, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", model)
        checkpointer.wait_until_finished()
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model)
        again = checkpointer.restore(tmp_path / "model", shapes)
    assert isinstance(again, icp_jax.Model)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)
