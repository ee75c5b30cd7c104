"""The error of every token by itself: what one huge token hides from the error of all."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icp_jax
from icp_jax.core.hyper import Recipe, block_orders, hyper
from icp_jax.core.icp import icp
from icp_jax.core.token_errors import beside, quantiles
from icp_jax.model import Model
from icp_jax.runs.records import block_record, read_block
from icp_jax.streaming import transfer


def compared(seed=0):
    """A sparse and a dense stream `[b, t, D]` with one token of massive activations."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(3, 50, 8)).astype(np.float32)
    sparse = dense + 0.3 * rng.normal(size=dense.shape).astype(np.float32)
    dense[0, 0] *= 1000
    sparse[0, 0] = dense[0, 0] * np.float32(1.001)
    return sparse, dense


def test_one_huge_token_hides_the_others_from_the_error_alone():
    sparse, dense = compared()
    found = beside(jnp.asarray(sparse), jnp.asarray(dense), jnp.array([True] * 3))
    own = np.square(sparse - dense).sum(-1) / np.square(dense).sum(-1)
    np.testing.assert_allclose(found.of_tokens, own, rtol=1e-5)
    median, high = quantiles(found.of_tokens)
    assert float(median) == pytest.approx(np.median(own), rel=1e-5)
    assert float(high) == pytest.approx(np.quantile(own, 0.95), rel=1e-5)
    assert found.lost / found.energy < 1e-4 < 0.05 < median < high


def test_padding_counts_nowhere():
    sparse, dense = compared()
    real = jnp.array([True, True, False])
    found = beside(jnp.asarray(sparse), jnp.asarray(dense), real)
    assert float(found.energy) == pytest.approx(np.square(dense[:2]).sum(), rel=1e-5)
    assert float(found.lost) == pytest.approx(np.square((sparse - dense)[:2]).sum(), rel=1e-5)


def plain(model, pruned, tokens, t):
    """The errors of the tokens after block t."""

    @jax.jit
    def hidden(model: Model, tokens):
        family, params = model.family, model.params
        x = family.embed.apply({"params": params["embed"]}, tokens)
        for k in range(t + 1):
            x = family.block_at(k).apply({"params": params["blocks"][str(k)]}, x)
        return x

    sparse, dense = (np.asarray(hidden(m, tokens), np.float64) for m in (pruned, model))
    return np.square(sparse - dense).sum(-1) / np.square(dense).sum(-1)


@pytest.mark.slow
def test_both_drivers_report_the_quantiles_of_the_tokens(opt_folder):
    model = icp_jax.load(opt_folder, np.float32)
    tokens = np.random.default_rng(1).integers(3, 97, (7, 24)).astype(np.int32)
    memory = icp_jax.config.MemoryConfig(batch_tokens=96)  # the last batch is padded
    pruned, reports = icp_jax.prune(model, tokens, method="magnitude", sparsity=0.5, memory=memory)
    last = len(reports) - 1
    own = plain(model, pruned, tokens, last)
    expected = [np.median(own), np.quantile(own, 0.95)]
    found = [reports[last].error_median, reports[last].error_p95]
    np.testing.assert_allclose(found, expected, rtol=1e-4)

    made = Recipe(method="magnitude", batch=transfer.batch_size(*tokens.shape, tokens=96))
    shapes = [model.shapes(t) for t in range(len(reports))]
    point = hyper(model.family, shapes, recipe=made, sparsity=0.5)
    order = block_orders(0, len(reports), 0, len(tokens))
    args = partial(icp, model.family, recipe=made)
    metrics = jax.jit(args)(model.params, tokens, point, order)[1]
    for name in ("error_median", "error_p95"):
        of_streaming = [getattr(report, name) for report in reports]
        np.testing.assert_allclose(getattr(metrics, name), of_streaming, rtol=1e-5)

    record = json.loads(json.dumps(block_record(reports[0])))
    assert read_block(record).error_median == reports[0].error_median > 0
    for name in ("error_median", "error_p95"):
        del record[name]
    assert np.isnan(read_block(record).error_p95)  # of an earlier version
