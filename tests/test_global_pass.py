"""The global pass with one block on the device at a time: the same as with all in memory."""

import jax
import numpy as np
import pytest
from conftest import pin_streams, write_llama, write_opt

import icp_jax
from icp_jax.core.distill import distill, steps
from icp_jax.streaming import distill as streaming
from icp_jax.streaming.distill import Hooks
from icp_jax.streaming.distill_steps import Pass

SMALL = {"num_hidden_layers": 2, "vocab_size": 97}
WRITERS = {"opt": (write_opt, np.float16), "llama": (write_llama, np.float32)}


@pytest.fixture(scope="module", params=WRITERS)
def models(request, tmp_path_factory):
    """(pruned, dense, windows)."""
    write, dtype = WRITERS[request.param]
    dense = icp_jax.load(write(tmp_path_factory.mktemp("m") / "m", dtype, **SMALL))
    windows = np.random.default_rng(1).integers(3, 97, (7, 16)).astype(np.int32)
    return icp_jax.prune(dense, windows, method="magnitude", sparsity=0.5)[0], dense, windows


def streamed(models, made, hooks=None, **given):
    pruned, dense, windows = models
    return streaming.distill(pruned, dense, windows[:5], windows[5:], Pass(made, **given), hooks)


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def blocks(pruned, found):
    return found.best or [pruned.block(t) for t in range(pruned.family.n_blocks)]


def test_it_is_the_pass_in_memory(models):
    """Not to the bit: within one program, XLA sums a block's gradient in another order."""
    pruned, dense, windows = models
    made = steps(5, epochs=2, lr=3e-3, batch=2)
    whole = jax.jit(distill, static_argnums=0)
    trees, split = (pruned.params, dense.params), (windows[:5], windows[5:])
    params, metrics = whole(dense.family, *trees, *split, rates=made.rates, order=made.order)
    found = streamed(models, made)
    assert found.metrics.best == metrics.best > 0 and found.metrics.steps.shape == (2, 2)
    for one, other in zip(metrics, found.metrics, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    for t, block in enumerate(blocks(pruned, found)):
        expected = params["blocks"][str(t)]
        # the loss does not depend on the bias of the keys: its gradient is rounding alone
        expected["k_proj"].pop("bias", None), block["k_proj"].pop("bias", None)
        for one, other in zip(*map(jax.tree.leaves, (expected, block)), strict=True):
            assert one.dtype == other.dtype
            wide = [np.asarray(x, np.float32) for x in (one, other)]
            np.testing.assert_allclose(*wide, rtol=1e-5, atol=1e-5 * np.abs(wide[0]).max())


def test_it_goes_on_after_an_epoch_and_keeps_zeros(models):
    pruned = models[0]
    made = steps(5, epochs=2, lr=3e-3)
    seen, ticks = [], []
    hooks = Hooks(
        lambda done, total, loss: ticks.append((done, total)),
        lambda found: seen.append(jax.tree.map(np.array, found)),  # as a file keeps it
    )
    found = streamed(models, made, hooks)
    assert len(seen) == 2 and ticks[-1][0] == ticks[-1][1]
    assert [done for done, _ in ticks] == sorted(done for done, _ in ticks)
    again = streamed(models, made, Hooks(begun=seen[0]), place="disk")
    assert same(again, found)
    for t, block in enumerate(blocks(pruned, found)):
        for spec in pruned.family.linears:
            old, new = (np.asarray(b[spec.name]["kernel"]) for b in (pruned.block(t), block))
            assert not np.array_equal(old, new) and not np.any(new[old == 0])


def test_streams_in_pinned_memory_change_nothing(models, monkeypatch):
    made = steps(5, lr=3e-3, batch=2)
    found = streamed(models, made)
    pin_streams(monkeypatch)
    assert same(streamed(models, made), found)


def test_a_loss_that_is_not_finite_ends_it(models):
    found = streamed(models, steps(5, epochs=3, lr=1e30))
    assert found.best is None and found.metrics.best == 0
    assert found.epochs < 3 and np.isnan(found.metrics.heldout[-1])
