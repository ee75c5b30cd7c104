"""The re-tune of a pruned block: zeros held, errors lower, undone where the loss rises."""

from fractions import Fraction
from math import floor

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icp_jax
from icp_jax import RetuneConfig
from icp_jax.core import retune
from icp_jax.core.choice import LEFT
from icp_jax.core.fate import CompensationMetrics, Fate
from icp_jax.core.hyper import Hyper, Recipe, block_orders, hyper, stack
from icp_jax.core.outcomes import ROSE
from icp_jax.core.prune import LayerMetrics
from icp_jax.errors import InputError
from icp_jax.runs.records import block_record, read_block

PLUS = {"method": "icp+", "sparsity": 0.7}
ONCE = RetuneConfig(epochs=4, lr=3e-3, steps=1)
OFF = RetuneConfig(epochs=0)


@pytest.fixture(scope="module")
def plain(opt, windows):
    """The same run without the re-tune."""
    return icp_jax.prune(opt, windows, retune=OFF, **PLUS)


@pytest.fixture(scope="module")
def tuned(opt, windows):
    return icp_jax.prune(opt, windows, retune=ONCE, **PLUS)


def kernels(model, block="0"):
    return {s.name: model.params["blocks"][block][s.name]["kernel"] for s in model.family.linears}


def test_the_first_block_keeps_its_zeros_and_comes_nearer(plain, tuned):
    """Its mask is that of the run without a re-tune, for no block before it differs."""
    (before, reports), (after, better) = plain, tuned
    for name, kernel in kernels(after).items():
        assert np.array_equal(kernel == 0, kernels(before)[name] == 0), name
        assert not np.array_equal(kernel, kernels(before)[name]), name
    assert reports[0].retune is None
    assert better[0].retune.after < better[0].retune.before
    for one, other in zip(reports, better, strict=True):
        assert other.error < one.error


def test_in_steps_it_comes_nearer_for_as_many_epochs(opt, windows, tuned):
    steps = RetuneConfig(epochs=1, lr=3e-3, steps=4)
    _, better = icp_jax.prune(opt, windows, retune=steps, **PLUS)
    assert better[-1].error < tuned[1][-1].error
    for before, after in zip(tuned[1], better, strict=True):
        assert [x.zeros for x in after.layers] == [x.zeros for x in before.layers]
        assert len(after.retune.epochs) == 4


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 6))
def test_the_steps_take_ever_less_and_end_with_all(count, steps):
    """Exactly, up to the largest int32; a layer that is left stays so; a pattern widens."""
    point = Hyper(np.int32([count, LEFT]), None, None, None, np.zeros((steps, 1), np.float32))
    made = [retune.step(point, Recipe(pattern=(2, 8)), k) for k in range(steps)]
    counts = [int(now.counts[0]) for now, _ in made]
    shares = [1 - (1 - Fraction(k + 1, steps)) ** 2 for k in range(steps)]
    assert counts == [floor(count * share) for share in shares] and counts[-1] == count
    assert all(int(now.counts[1]) == LEFT for now, _ in made)
    assert [recipe.pattern for _, recipe in made] == [(8 - floor(6 * s), 8) for s in shares]


@pytest.mark.parametrize("fates", [(1, 1, 1), (1, 3, 1), (4, 3, 1)])
def test_the_metrics_of_the_steps_are_joined(fates):
    """The worst fate is told, and of equal ones the last."""
    layers = [LayerMetrics(np.int32([k]), np.float32([k]), np.int32([2 - k])) for k in range(3)]
    tuned = [
        CompensationMetrics(*np.float32([k, k]), np.float32([k]), np.int32(f))
        for k, f in enumerate(fates)
    ]
    found, again = retune.joined(list(zip(layers, tuned, strict=True)))
    assert (found.zeros, found.error, found.rungs) == (2, 2, 2)
    worst = max(range(3), key=lambda k: (fates[k], k))
    assert (again.before, int(again.fate)) == (worst, max(fates))
    assert again.epochs.tolist() == [0, 1, 2]


@pytest.mark.slow
def test_a_pattern_is_kept(opt, windows):
    pruned, _ = icp_jax.prune(opt, windows, method="icp+", pattern="2:4")
    for kernel in kernels(pruned, "1").values():
        groups = np.asarray(kernel).reshape(-1, 4, kernel.shape[1])
        assert np.all((groups != 0).sum(1) <= 2)


def test_a_re_tune_whose_loss_rises_is_undone(opt, windows, plain):
    wild = RetuneConfig(lr=1e3, steps=1)
    with pytest.raises(InputError, match=r"block 0: re-tune undone, loss rose.*lower .*retune.lr"):
        icp_jax.prune(opt, windows, retune=wild, **PLUS)
    alone = {"keep_last": opt.family.n_blocks - 1}  # one remedy is allowed
    kept, reports = icp_jax.prune(opt, windows, retune=wild, **alone, **PLUS)
    base, _ = icp_jax.prune(opt, windows, retune=OFF, **alone, **PLUS)
    assert reports[0].retune.restored == ROSE
    for name, kernel in kernels(kept).items():
        assert np.array_equal(kernel, kernels(base)[name]), name


def test_a_block_that_is_left_is_not_tuned(opt, windows):
    kept, reports = icp_jax.prune(opt, windows, keep_first=1, **PLUS)
    assert reports[0].retune is None and reports[1].retune is not None
    for name, kernel in kernels(kept).items():
        assert np.array_equal(kernel, kernels(opt)[name]), name


def test_a_record_of_the_report_reads_back(tuned):
    for report in tuned[1]:
        assert read_block(block_record(report)).retune == report.retune
    old = block_record(tuned[1][0])
    del old["retune"]  # as earlier versions wrote it
    assert read_block(old).retune is None


@pytest.mark.slow
def test_it_is_traced_and_mapped(opt, windows):
    """A sweep of the re-tune's rate in one program; a rate of zero changes nothing."""
    recipe = Recipe(method="icp+", batch=len(windows))
    shapes = [opt.shapes(t) for t in range(opt.family.n_blocks)]
    points = [hyper(opt.family, shapes, recipe=recipe, retune_lr=lr) for lr in (0.0, 1e-3, 3e-3)]
    order = block_orders(0, opt.family.n_blocks, points[0].orders, len(windows))

    def error(point):
        _, found = icp_jax.icp(opt.family, opt.params, windows, point, order, recipe)
        return found.error, found.retune.fate

    errors, fates = jax.jit(lambda many: jax.lax.map(error, many))(stack(points))
    assert np.all(fates == Fate.KEPT)
    assert errors[2, -1] < errors[1, -1] < errors[0, -1]
