"""Products, and blocks made of them, in every transformation."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LLAMA, OPT
from vision.small_sam import CONFIG as SAM

from icp_jax.backend.products import full_precision, left_transposed, product32
from icp_jax.core.passes import Apply
from icp_jax.models import make_family


@pytest.mark.parametrize("rows", [1, 40])
def test_left_transposed(rows):
    x = jax.random.normal(jax.random.key(0), (rows, 10))
    y = jax.random.normal(jax.random.key(1), (rows, 3))
    np.testing.assert_allclose(left_transposed(x, y), x.T @ y, rtol=1e-5, atol=1e-5)


A = jax.random.normal(jax.random.key(0), (2, 6, 3))
B = jax.random.normal(jax.random.key(1), (2, 3, 4))
MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
ROWS, WHOLE = jax.sharding.PartitionSpec("d"), jax.sharding.PartitionSpec()


def sharded(f):
    return jax.shard_map(f, mesh=MESH, in_specs=(ROWS, WHOLE), out_specs=ROWS)


def total(f):
    return lambda a, b: jnp.sum(jnp.tanh(f(a, b)) ** 2)


def saving(f):
    return jax.checkpoint(total(f), policy=jax.checkpoint_policies.dots_saveable)


WAYS = {
    "gradient": lambda f: jax.grad(total(f), (0, 1))(A, B),
    "jvp": lambda f: jax.jvp(total(f), (A, B), (A, B))[1],
    "per sample": lambda f: jax.vmap(jax.grad(total(f), 1), (0, None))(A[:, None], B),
    "hessian": lambda f: jax.hessian(total(f), 1)(A, B),
    "rematerialised": lambda f: jax.grad(saving(f), 1)(A, B),
    "by devices": lambda f: jax.grad(total(sharded(f)), (0, 1))(A, B[0]),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_product_in_every_transformation(way, turned):
    def ours(a, b):
        return product32(a, b.mT, True) if turned else product32(a, b)

    got, want = (jax.jit(lambda f=f: WAYS[way](f))() for f in (ours, jnp.matmul))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("turned", [False, True])
def test_a_product_of_half_precision_is_summed_in_float32(turned):
    a, b = A.astype("bfloat16"), B.astype("bfloat16")
    got = product32(a, b.mT if turned else b, turned)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, np.matmul(*(np.asarray(x, np.float32) for x in (a, b))), 1e-6)


@pytest.mark.parametrize("config", [OPT, LLAMA, SAM], ids=["opt", "llama", "sam"])
@pytest.mark.parametrize("way", ["rematerialised", "by devices"])
def test_a_blocks_gradient(config, way):
    """Under a policy that saves products, and inside `shard_map`: as without them."""
    family = make_family(config)
    positions = (8, 8) if family.kind == "vision" else (8,)
    x = jax.random.normal(jax.random.key(0), (2, *positions, family.hidden_size))
    params = family.block_at(0).init(jax.random.key(1), x)["params"]

    def apply(x, params):
        return family.block_at(0).apply({"params": params}, x)

    other = saving(apply) if way == "rematerialised" else total(sharded(apply))
    got, want = (jax.jit(jax.grad(f, 1))(x, params) for f in (other, total(apply)))
    for one, same in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-4, atol=1e-4)


def test_on_a_gpu_float32_means_float32(monkeypatch):
    """No TF32: all products of a block and of its gradient ask for full precision there."""
    family = make_family(OPT)
    x = jnp.ones((1, 8, 32))
    params = family.block_at(0).init(jax.random.key(0), x)["params"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def loss(p):
        return jnp.sum(Apply(family.block_at(0), "float32")(p, x))

    text = str(jax.make_jaxpr(jax.value_and_grad(loss))(params))
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST") > 15
    assert isinstance(full_precision("bfloat16"), contextlib.nullcontext)
