"""Dead inputs, tiny weights, float64, and what is no budget."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icp_jax
from icp_jax.core import pruners, scaling, stats
from icp_jax.core.masks import keep_largest, keep_n_of_m
from icp_jax.core.pruners import METHODS
from icp_jax.streaming import passes

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 64)).astype(np.float32) * np.exp(RNG.normal(size=64)).astype(np.float32)
KERNEL = RNG.normal(size=(64, 24)).astype(np.float32)
TINY = [1e-18, 1e-25, 1e-30, 1e-38, 1e-42]


def run(method, kernel, budget=700, x=X, **options):
    """(kernel, keep), which leaves the kernel given as it was."""
    prepared = METHODS[method].prepare(stats.from_inputs(x), 0.01)
    new, keep, *_ = METHODS[method].prune(jnp.array(kernel), prepared, budget, **options)
    return np.asarray(new), np.asarray(keep)


@pytest.mark.parametrize("pattern", [None, (2, 4)])
@pytest.mark.parametrize("method", ["alps", "sparsegpt", "wanda", "magnitude"])
@pytest.mark.parametrize("scale", TINY)
def test_tiny_weights_are_pruned_as_any(method, pattern, scale):
    """By a power of two, and so to the bit, as far as they are no subnormal numbers."""
    kernel = np.ldexp(KERNEL, round(np.log2(scale))).astype(np.float32)
    # what is lost of subnormal numbers was lost before
    again = np.ldexp(kernel.astype(np.float64), -round(np.log2(scale))).astype(np.float32)
    want, want_keep = run(method, again, pattern=pattern)
    new, keep = run(method, kernel, pattern=pattern)
    np.testing.assert_array_equal(keep, want_keep)
    np.testing.assert_array_equal(new, np.ldexp(want, round(np.log2(scale))).astype(np.float32))
    assert np.all((new == 0) == ~keep)


def test_tiny_weights_beside_large_ones():
    kernel = KERNEL * np.logspace(-41, 0, 64, dtype=np.float32)[:, None]
    for method in ("alps", "sparsegpt", "wanda", "magnitude"):
        new, keep = run(method, kernel, 24 * 32)
        assert (new == 0).sum() == (~keep).sum() == 24 * 32
    _, keep = run("magnitude", kernel, 24 * 32)
    assert np.abs(kernel)[~keep].max() <= np.abs(kernel)[keep].min()


class Masks(chex.TestCase):
    """Compiled or not: subnormal numbers are told apart, and from zero."""

    scores = np.asarray([[3e-45, 1e-40, 0.0, 2e-40, 1e-38, 1e-44, 2.0, 1.5e-40]], np.float32)

    @chex.variants(with_jit=True, without_jit=True)
    def test_the_smallest(self):
        keep = self.variant(keep_largest)(self.scores, np.array([4]))
        np.testing.assert_array_equal(np.flatnonzero(~np.asarray(keep)), [0, 1, 2, 5])

    @chex.variants(with_jit=True, without_jit=True)
    def test_the_smallest_of_a_group(self):
        keep = self.variant(lambda s: keep_n_of_m(s, 2, 4))(self.scores.T)
        np.testing.assert_array_equal(np.flatnonzero(keep), [1, 3, 4, 6])

    @chex.variants(with_jit=True, without_jit=True)
    def test_zeros(self):
        assert int(self.variant(scaling.zeros)(jnp.asarray(self.scores))) == 1

    @chex.variants(with_jit=True, without_jit=True)
    def test_lifting_is_undone(self):
        lifted, shift = self.variant(scaling.lift)(jnp.asarray(self.scores))
        want = np.ldexp(self.scores.astype(np.float64), int(shift))
        np.testing.assert_array_equal(np.asarray(lifted, np.float64), want)
        back = self.variant(scaling.lower)(lifted, shift)
        np.testing.assert_array_equal(np.asarray(back).view(np.int32), self.scores.view(np.int32))


@pytest.mark.parametrize("options", [{}, {"pattern": (2, 4)}, {"block": 16}])
@pytest.mark.parametrize("dead", [0, 7, 40, 64])
def test_all_weights_of_dead_inputs_go_and_are_counted(dead, options):
    x = X.copy()
    x[:, :dead] = 0
    new, keep = run("sparsegpt", KERNEL, 600, x, **options)
    assert (~keep).sum() == (new == 0).sum() >= 24 * dead
    if dead <= 7 and options == {}:
        assert (~keep).sum() == 600


@pytest.mark.parametrize(
    "method, quant",
    [
        *((name, {}) for name in METHODS),
        # a re-tune does not go with quantization
        *((name, {"bits": 3}) for name, method in METHODS.items() if not method.retunes),
    ],
)
def test_the_report_counts_the_zeros_there(bundled, method, quant):
    model = icp_jax.load(bundled)
    for block in model.params["blocks"].values():  # a norm that gives nothing for half its width
        for name in ("scale", "bias"):
            block["self_attn_layer_norm"][name][:100] = 0
    tokens = np.random.default_rng(0).integers(3, 500, (2, 32)).astype(np.int32)
    options = {"compensation": icp_jax.CompensateConfig(epochs=0)}
    quant = icp_jax.QuantConfig(**quant)
    pruned, reports = icp_jax.prune(
        model, tokens, method=method, sparsity=0.3, quant=quant, **options
    )
    for t, report in enumerate(reports):
        for layer in report.layers:
            kernel = np.asarray(pruned.params["blocks"][str(t)][layer.name]["kernel"])
            assert layer.zeros == np.sum(kernel == 0), layer.name


PRUNERS = {
    "sparsegpt": lambda k, b: pruners.sparsegpt(k, pruners.factor(stats.from_inputs(X)), b),
    "walk": lambda k, b: pruners.walk(k, pruners.factor(stats.from_inputs(X)), b),
    "alps": lambda k, b: pruners.alps(k, pruners.spectrum(stats.from_inputs(X)), b),
    "wanda": lambda k, b: pruners.wanda(k, stats.from_inputs(X), b),
    "magnitude": lambda k, b: pruners.magnitude(k, None, b),
    "icp": lambda k, b: METHODS["icp"].prune(jnp.array(k), pruners.factor(stats.from_inputs(X)), b),
    "keep_largest": lambda k, b: keep_largest(k[:1], b if np.ndim(b) else [b]),
}


@pytest.mark.filterwarnings("ignore:Some donated buffers")  # under vmap
@pytest.mark.parametrize("name", PRUNERS)
def test_a_budget_is_a_count(name):
    prune = PRUNERS[name]
    for bad in (
        0.7,
        1.0,
        True,
        np.float32(3),
        jnp.asarray(0.5),
        np.bool_(True),
        np.zeros((2, 2), int),
    ):
        with pytest.raises(TypeError, match="budget must be"):
            prune(KERNEL, bad)
    for bad in (-1, KERNEL.size + 1, np.int64(2**40)):
        with pytest.raises(ValueError, match="budget must be from 0 to"):
            prune(KERNEL, bad)
    for good in (5, np.int64(5), np.uint8(5), jnp.asarray(5)):
        prune(KERNEL, good)
    if name != "keep_largest":
        with pytest.raises(TypeError, match="budget must be"):
            jax.jit(lambda b: prune(KERNEL, b))(0.5)
        keeps = jax.vmap(lambda b: prune(KERNEL, b)[1])(jnp.asarray([5, 9]))
        assert (~np.asarray(keeps)).sum((1, 2)).tolist() == [5, 9]


@pytest.mark.parametrize("turn", [False, True])
def test_float64_that_stays_loses_nothing(turn):
    old = np.random.default_rng(1).normal(size=(6, 5)) * 1e-3
    old = np.asfortranarray(old) if turn else old
    np.testing.assert_array_equal(passes.stored(jnp.asarray(old, jnp.float32), old), old)
    new = jnp.where(jnp.asarray(np.abs(old) > 1e-3), jnp.asarray(old, jnp.float32), 0)
    found = passes.stored(new, old)
    np.testing.assert_array_equal(found, np.where(np.abs(old) > 1e-3, old, 0))
    assert found.dtype == np.float64 and found.flags.f_contiguous == turn


@pytest.mark.parametrize("sparsity,method", [(0.0, "sparsegpt"), (0.5, "wanda")])
def test_a_float64_model_keeps_what_is_not_pruned(bundled, sparsity, method):
    rng = np.random.default_rng(2)
    model = icp_jax.load(bundled, np.float64)
    noisy = jax.tree.map(lambda a: a + 1e-12 * rng.normal(size=a.shape), model.params)
    model.params.update(noisy)
    tokens = rng.integers(3, 500, (2, 32)).astype(np.int32)
    pruned, reports = icp_jax.prune(model, tokens, sparsity=sparsity, method=method)
    zeros = sum(layer.zeros for report in reports for layer in report.layers)
    lost = 0
    for new, old in zip(jax.tree.leaves(pruned.params), jax.tree.leaves(noisy), strict=True):
        assert new.dtype == np.float64
        np.testing.assert_array_equal(new, np.where(new == 0, new, old))
        lost += np.sum((new == 0) & (old != 0))
    assert lost == zeros


@pytest.mark.parametrize("seed", [3, np.int64(3), np.uint8(3), jnp.asarray(3), (3,), [np.int32(3)]])
def test_a_seed_is_any_integer(seed):
    x = np.random.default_rng(0).normal(size=(8, 2, 4)).astype(np.float32)
    tuned, _ = icp_jax.compensate(_tanh, {"k": jnp.eye(4)}, x, x, seed=seed, lr=1e-2)
    want, _ = icp_jax.compensate(_tanh, {"k": jnp.eye(4)}, x, x, seed=3, lr=1e-2)
    np.testing.assert_array_equal(tuned["k"], want["k"])


def _tanh(p, x):
    return jnp.tanh(x @ p["k"])
