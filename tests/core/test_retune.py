"""The re-tune of a pruned block: zeros held, errors lower, undone where the loss rises."""

import jax
import numpy as np
import pytest

import icp_jax
from icp_jax import RetuneConfig
from icp_jax.core.fate import Fate
from icp_jax.core.outcomes import ROSE
from icp_jax.errors import InputError
from icp_jax.runs.records import block_record, read_block

PLUS = {"method": "icp+", "sparsity": 0.7}
OFF = RetuneConfig(epochs=0)


@pytest.fixture(scope="module")
def plain(opt, windows):
    """The same run without the re-tune."""
    return icp_jax.prune(opt, windows, retune=OFF, **PLUS)


@pytest.fixture(scope="module")
def tuned(opt, windows):
    return icp_jax.prune(opt, windows, retune=RetuneConfig(epochs=4, lr=3e-3), **PLUS)


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


@pytest.mark.slow
def test_a_pattern_is_kept(opt, windows):
    pruned, _ = icp_jax.prune(opt, windows, method="icp+", pattern="2:4")
    for kernel in kernels(pruned, "1").values():
        groups = np.asarray(kernel).reshape(-1, 4, kernel.shape[1])
        assert np.all((groups != 0).sum(1) <= 2)


def test_a_re_tune_whose_loss_rises_is_undone(opt, windows, plain):
    wild = RetuneConfig(lr=1e3)
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
    from icp_jax.core.hyper import Recipe, block_orders, hyper, stack

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
