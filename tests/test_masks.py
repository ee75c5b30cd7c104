import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icp_jax.core.masks import apply_keep, keep_largest, keep_n_of_m, parse_pattern
from icp_jax.errors import InputError


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([9, 12, 16]).flatmap(  # counted in 1, 4 and 8 parts
        lambda size: st.tuples(
            st.lists(
                st.sampled_from([0.0, 1e-38, 0.5, 0.5, 2.0, 3e38]), min_size=size, max_size=size
            ),
            st.integers(0, size),
        )
    )
)
def test_smallest_go_first_ties_to_the_lowest_index(problem):
    scores, budget = problem
    keep = keep_largest(jnp.asarray([scores], jnp.float32), jnp.asarray([budget]))
    gone = np.argsort(np.asarray(scores, np.float32), kind="stable")[:budget]
    want = np.ones(len(scores), bool)
    want[gone] = False
    np.testing.assert_array_equal(np.asarray(keep)[0], want)


def test_rows_have_their_own_budgets():
    scores = np.random.default_rng(0).random((5, 33)).astype(np.float32)
    keep = np.asarray(keep_largest(jnp.asarray(scores), jnp.asarray([0, 1, 16, 32, 33])))
    np.testing.assert_array_equal((~keep).sum(1), [0, 1, 16, 32, 33])


def test_n_of_m_with_ties():
    keep = np.asarray(keep_n_of_m(jnp.asarray([[1.0], [1.0], [1.0], [0.0]]), 2, 4))
    np.testing.assert_array_equal(keep[:, 0], [False, True, True, False])


@pytest.mark.parametrize("text", ["4:2", "0:4", "2-4", "2:4:8", "a:b", "4:4"])
def test_bad_patterns(text):
    with pytest.raises(InputError, match="pattern"):
        parse_pattern(text)


def test_apply_keep_takes_partial_trees():
    params = {"a": {"kernel": jnp.ones(3), "bias": jnp.ones(1)}, "b": jnp.ones(2)}
    out = apply_keep(params, {"a": {"kernel": jnp.asarray([True, False, True])}, "b": None})
    np.testing.assert_array_equal(out["a"]["kernel"], [1, 0, 1])
    np.testing.assert_array_equal(out["b"], [1, 1])
    with pytest.raises(KeyError, match="'c'"):
        apply_keep(params, {"c": None})
