"""Rematerialised attention: the same outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icp_jax.models import attention


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("length", [7, 24])
def test_attention(monkeypatch, length, window):
    monkeypatch.setattr(attention, "QUERY_CHUNK", 8)
    q, k, v = (
        jax.random.normal(jax.random.key(i), (2, length, heads, 4))
        for i, heads in enumerate((6, 2, 2))
    )

    def loss(remat, *qkv):
        return jnp.sum(jnp.tanh(attention.causal_attention(*qkv, 0.5, window, remat)) ** 2)

    plain, again = (
        jax.jit(jax.value_and_grad(loss, (1, 2, 3)), static_argnums=0)(remat, q, k, v)
        for remat in (False, True)
    )
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
