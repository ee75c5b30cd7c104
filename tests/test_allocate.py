import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icp_jax.core.allocate import across_blocks, within_block
from icp_jax.errors import InputError
from icp_jax.models.spec import Rearrangement, parse_rearrangement

OPT = {"q": 4, "k": 4, "v": 4, "o": 4, "f1": 16, "f2": 16}
QKV_F2 = parse_rearrangement("qkv-f2", OPT)


def test_the_papers_formulas_on_equal_blocks():
    zeros = across_blocks([10**6] * 12, 0.7, 0.691)
    assert zeros[-1] == pytest.approx(0.691 * 0.7 * 10**6, abs=1)
    for block in zeros[:-1]:
        assert block == pytest.approx((0.7 + (1 - 0.691) * 0.7 / 11) * 10**6, abs=1)
    assert sum(zeros) == round(0.7 * 12 * 10**6)


def test_what_gives_and_what_takes():
    sizes = {role: n * 10**5 for role, n in OPT.items()}
    zeros = within_block(sizes, round(0.5 * sum(sizes.values())), 0.2, QKV_F2)
    rates = {role: zeros[role] / sizes[role] for role in sizes}
    assert rates["q"] == rates["k"] == rates["v"] == pytest.approx(0.4, abs=1e-5)
    assert rates["o"] == rates["f1"] == pytest.approx(0.5, abs=1e-5)
    assert rates["f2"] == pytest.approx(0.5 + 0.1 * 12 / 16, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=9),
    sparsity=st.floats(0, 0.999),
    alpha=st.floats(0, 1.5),
)
def test_totals_are_exact(sizes, sparsity, alpha):
    try:
        zeros = across_blocks(sizes, sparsity, alpha)
    except InputError:
        return
    assert sum(zeros) == round(sparsity * sum(sizes))
    assert all(0 <= z <= n for z, n in zip(zeros, sizes, strict=True))


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_alpha_from_one_on_is_uniform(alpha):
    assert across_blocks([100, 200], 0.5, alpha) == [50, 100]


def test_one_block_is_uniform():
    assert across_blocks([100], 0.5, 0.1) == [50]


def test_infeasible_beta_names_the_largest():
    zeros = round(0.9 * 1.028 * 48 * 10**5)
    sizes = {role: n * 10**5 for role, n in OPT.items()}
    with pytest.raises(InputError, match="largest feasible beta is 0.1077") as raised:
        within_block(sizes, zeros, 0.2, QKV_F2)
    largest = float(str(raised.value).rsplit(" ", 1)[1])
    assert max(within_block(sizes, zeros, largest, QKV_F2)[r] / sizes[r] for r in sizes) < 1
    with pytest.raises(InputError):
        within_block(sizes, zeros, largest + 2e-4, QKV_F2)


def test_infeasible_alpha_names_the_smallest():
    with pytest.raises(InputError, match="alpha must be above 0.9474"):
        across_blocks([100, 100], 0.95, 0.5)


@pytest.mark.parametrize("text", ["qkv", "qkv-", "-f2", "qkx-f2", "qq-f2", "qkv-q"])
def test_bad_rearrangements(text):
    with pytest.raises(ValueError, match="rearrangement"):
        parse_rearrangement(text, OPT)


@pytest.mark.parametrize(
    "gives, takes, message",
    [
        (("q", "k", "q"), ("f2",), "lists q twice"),
        (("q",), ("f2", "f1", "f2", "f1"), "lists f2, f1 twice"),
        (("q", "k"), ("k",), "both give and take: k"),
        ((), ("f2",), "needs a layer that gives and one that takes"),
        (("q",), (), "needs a layer that gives and one that takes"),
    ],
)
def test_a_rearrangement_lists_every_role_once(gives, takes, message):
    with pytest.raises(InputError, match=message):
        Rearrangement(gives, takes)


def test_a_rearrangement_of_other_roles():
    sizes = {role: n * 100 for role, n in OPT.items()}
    with pytest.raises(InputError, match="no layer has the role down; use q, k"):
        within_block(sizes, 100, 0.1, Rearrangement(("q",), ("down",)))


@settings(max_examples=40, deadline=None)
@given(sparsity=st.floats(0, 0.95), alpha=st.floats(0.5, 1), beta=st.floats(0, 0.3))
def test_totals_are_exact_at_6_7b(sparsity, alpha, beta):
    """6.4 billion weights do not fit 32 bits; a float32 sum would be off by hundreds."""
    d, blocks = 4096, 32
    sizes = {**dict.fromkeys("qkvo", d * d), "f1": 4 * d * d, "f2": 4 * d * d}
    whole = sum(sizes.values())
    try:
        zeros = across_blocks([whole] * blocks, sparsity, alpha)
        within = [within_block(sizes, count, beta, QKV_F2) for count in zeros]
    except InputError:
        return
    assert sum(sum(block.values()) for block in within) == round(sparsity * whole * blocks)
    assert all(0 <= block[role] < sizes[role] for block in within for role in sizes)
