"""With `jax_enable_x64` all works, and float64 scores are told apart."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

HERE = Path(__file__).parent


def float64_masks():
    from icp_jax.core.masks import keep_largest, keep_n_of_m

    scores = 1 + np.asarray([[3e-12, 0, 1e-12, 2e-12]])
    for scale in (1.0, 1e-200, 1e-308):
        scores = scores * scale
        np.testing.assert_array_equal(keep_largest(scores, np.array([2])), [[1, 0, 0, 1]])
        np.testing.assert_array_equal(keep_n_of_m(scores.T, 2, 4).T, [[1, 0, 0, 1]])
        scores = scores / scale


def pruners_of_float64():
    from icp_jax.core import stats
    from icp_jax.core.pruners import METHODS

    rng = np.random.default_rng(0)
    moments = stats.from_inputs(rng.normal(size=(200, 32)))
    kernel = rng.normal(size=(32, 16))
    for scale in (1.0, 1e-60, 1e-290):
        for method in METHODS.values():
            prepared = method.prepare(moments, 0.01)
            for pattern in (None, (2, 4)):
                given = jax.numpy.array(kernel * scale)
                new, keep, *_ = method.prune(given, prepared, 200, pattern=pattern)
                gone = 200 if pattern is None else 256
                assert new.dtype == np.float64
                assert (~np.asarray(keep)).sum() == (np.asarray(new) == 0).sum() == gone


def grids():
    from icp_jax.core.quantize import make_grid, round_kernel

    kernel = jax.random.normal(jax.random.key(0), (64, 8), "float32")
    for kind in ({}, {"search": True}, {"group": 32, "symmetric": True, "search": True}):
        grid = make_grid(kernel, 4, importance=np.ones(64, np.float32), **kind)
        new = round_kernel(kernel, np.ones(kernel.shape, bool), grid)
        assert new.dtype == np.float32 and np.abs(new - kernel).max() < 0.6


def runs():
    import icp_jax
    from icp_jax.demo import BUNDLED

    model = icp_jax.load(BUNDLED)
    tokens = np.random.default_rng(0).integers(3, 500, (4, 32)).astype(np.int32)
    quant = icp_jax.QuantConfig(bits=4, search=True)
    for settings in ({"sparsity": 0.5}, {"pattern": "2:4", "quant": quant}, {"method": "wanda"}):
        pruned, reports = icp_jax.prune(model, tokens, **settings)
        assert all(report.error < 1 for report in reports)
        leaves = zip(jax.tree.leaves(pruned.params), jax.tree.leaves(model.params), strict=True)
        assert all(new.dtype == old.dtype for new, old in leaves)
    assert icp_jax.evaluate(model, tokens).perplexity > 1


PARTS = {f.__name__: f for f in (float64_masks, pruners_of_float64, grids, runs)}


@pytest.mark.parametrize("part", PARTS)
def test_with_x64(part):
    """In a process of its own, with strict promotion and shapes checked as here."""
    code = f"import checked_shapes, test_x64; test_x64.PARTS[{part!r}]()"
    env = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    path = [str(HERE), *filter(None, [env.get("PYTHONPATH")])]
    env["PYTHONPATH"] = os.pathsep.join(path)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
