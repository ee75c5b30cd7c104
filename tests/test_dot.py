"""Products with a transposed left side are the products they replace, derivatives and all."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import OPT

from icp_jax.core.passes import Apply
from icp_jax.dot import full_precision, left_transposed, linear, product32
from icp_jax.models import make_family


@pytest.mark.parametrize("rows", [1, 40])
def test_left_transposed(rows):
    x = jax.random.normal(jax.random.key(0), (rows, 10))
    y = jax.random.normal(jax.random.key(1), (rows, 3))
    np.testing.assert_allclose(left_transposed(x, y), x.T @ y, rtol=1e-5, atol=1e-5)


X = jax.random.normal(jax.random.key(0), (2, 5, 3))
W = jax.random.normal(jax.random.key(1), (3, 4))
WAYS = {
    "value": lambda f: f(X, W),
    "gradient": lambda f: jax.grad(f, (0, 1))(X, W),
    "jvp": lambda f: jax.jvp(f, (X, W), (X, W))[1],
    "per sample": lambda f: jax.vmap(jax.grad(f, 1), (0, None))(X[:, None], W),
    "over kernels": lambda f: jax.vmap(jax.grad(f, 0), (None, 0))(X, jnp.stack([W, 2 * W])),
    "hessian": lambda f: jax.hessian(f, 1)(X, W),
    "hessian times vector": lambda f: jax.jvp(lambda w: jax.grad(f, 1)(X, w), (W,), (W,))[1],
    "rematerialised": lambda f: jax.grad(jax.checkpoint(f), 1)(X, W),
}


@pytest.mark.parametrize("way", WAYS)
def test_linear_in_every_transformation(way):
    def of(product):
        return jax.jit(lambda: WAYS[way](lambda x, w: jnp.sum(jnp.tanh(product(x, w)) ** 2)))()

    for got, want in zip(jax.tree.leaves(of(linear)), jax.tree.leaves(of(jnp.matmul)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


A, B = (jax.random.normal(jax.random.key(i), (2, 6, 3)) for i in range(2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n", [1, 6])  # one side has less to turn, or the other
@pytest.mark.parametrize("turned", [False, True])
def test_product_of_batches(turned, n, dtype):
    a, b = A.astype(dtype), B[:, :n].astype(dtype)
    b = b if turned else b.mT

    def plain(a, b):
        return jnp.matmul(a, b.mT if turned else b, preferred_element_type=jnp.float32)

    def product(a, b):
        return product32(a, b, turned)

    def loss(f, *sides):
        return jnp.sum(jnp.tanh(f(*sides)) ** 2)

    one, other = (
        jax.jit(jax.value_and_grad(partial(loss, f), (0, 1)))(a, b) for f in (product, plain)
    )
    for got, want in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(product(a, b[:1]), plain(a, b[:1]), rtol=1e-5, atol=1e-6)
    each = jax.vmap(product)(a, b)
    np.testing.assert_allclose(each, product(a, b), rtol=1e-6)


def test_the_gradient_has_no_product_with_a_transposed_left_side():
    def dots(product):
        text = jax.jit(jax.grad(lambda w: jnp.sum(product(X, w) ** 2))).lower(W).as_text()
        return [line for line in text.splitlines() if "dot_general" in line]

    # JAX's own sums over the rows of both sides, `[0, 1] x [0, 1]`
    assert any("contracting_dims = [0, 1] x [0, 1]" in line for line in dots(jnp.matmul))
    assert not any("contracting_dims = [0, 1] x [0, 1]" in line for line in dots(linear))


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
