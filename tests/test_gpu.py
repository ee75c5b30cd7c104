"""What only a GPU can show: `make test-gpu`, on a machine that has one; the CPU is the measure."""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import write_opt
from packing import write_pruned
from safetensors.numpy import load_file

import icp_jax
from icp_jax import CalibrationConfig, CompensateConfig, PruneConfig, QuantConfig, RunConfig
from icp_jax.config import MemoryConfig
from icp_jax.core.quantize import make_grid
from icp_jax.models import attention
from icp_jax.runs.run import prune_folder
from icp_jax.streaming import passes, unpacking
from icp_jax.streaming.source import FolderSource

pytestmark = pytest.mark.gpu

# Parity of a run's results with the CPU's. Rounding errors swap a few entries of the masks, and
# what the walk does later in those columns follows.
ERRORS = {"float32": 1e-2, "bfloat16": 5e-2}  # of a block's stream, relative
MASKS = {"float32": 1e-2, "bfloat16": 0.2}  # share of a layer's entries


@pytest.fixture(autouse=True)
def gpu():
    assert jax.default_backend() == "gpu", "these tests are for a machine with a GPU"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_loop_goes_on_with_what_the_file_will_hold(dtype):
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(300, 200)) * 10.0 ** rng.uniform(-9, 4, (300, 200))
    leaf = jnp.asarray(wide, jnp.float32)
    (found,) = passes.rounded([leaf], [jnp.dtype(dtype)])
    want = np.asarray(leaf).astype(jnp.dtype(dtype)).astype(np.float32)
    np.testing.assert_array_equal(found, want)
    scale = np.asarray(make_grid(leaf, 4, dtype=dtype).scale)
    np.testing.assert_array_equal(scale, scale.astype(jnp.dtype(dtype)).astype(np.float32))


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_packed_blocks_are_unpacked_on_the_device(tmp_path, tokens, pattern):
    source = write_pruned(tmp_path / "m", pattern=pattern)
    icp_jax.pack(source, tmp_path / "p")
    with contextlib.closing(FolderSource(tmp_path / "p")) as model:
        moved = jax.tree.leaves(unpacking.to_move(model, 1), is_leaf=unpacking.is_packed)
        assert sum(map(unpacking.is_packed, moved)) == 6
        assert icp_jax.evaluate(model, tokens) == icp_jax.evaluate(source, tokens)


@pytest.mark.parametrize("head_dim", [64, 128, 100])
@pytest.mark.parametrize("window", [None, 100])
def test_fused_attention_is_the_chunked_one(monkeypatch, window, head_dim):
    """Forward and gradient, fewer key heads than query heads, an odd length; 100: no fused one."""
    q, k, v = (
        jax.random.normal(jax.random.key(i), (2, 255, heads, head_dim)).astype("bfloat16")
        for i, heads in enumerate((8, 2, 2))
    )

    def loss(q, k, v):
        out = attention.causal_attention(q, k, v, head_dim**-0.5, window).astype(jnp.float32)
        return jnp.mean(jnp.square(out - 1)), out

    def run():
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

    found = jax.tree.leaves(run())
    monkeypatch.setattr(attention, "_cudnn_takes", lambda head_dim: False)
    jax.clear_caches()
    for new, old in zip(found, jax.tree.leaves(run()), strict=True):
        new, old = np.asarray(new, np.float32), np.asarray(old, np.float32)
        assert np.linalg.norm(new - old) <= 2e-2 * np.linalg.norm(old)


@pytest.fixture(scope="module")
def place(tmp_path_factory, bundled):
    folder = tmp_path_factory.mktemp("gpu")
    write_opt(folder / "model", hidden_size=64, word_embed_proj_dim=64, ffn_dim=256)
    (folder / "text.txt").write_text((bundled / "calibration.txt").read_text()[:9000])
    return folder


@pytest.fixture(scope="module")
def cpu(place):
    """What the CPU gives in float32, worked out once, by what is asked for."""

    @functools.cache
    def result(what):
        given = ["model", what, "--data", "text.txt"]
        given += ["--samples", "16", "--compensate.lr", "1e-3"]
        more = ["--pattern", "2:4", "--bits", "4"]
        given += more if what != "unstructured" else ["--sparsity", "0.5"]
        code = [sys.executable, "-m", "icp_jax.cli", "prune", *given, "--json"]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        subprocess.run(code, cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)
        return read(place / what)

    return result


@pytest.fixture(autouse=True)
def out(place):
    yield
    shutil.rmtree(place / "out", ignore_errors=True)


def config_for(place, **changes):
    return RunConfig(
        model=str(place / "model"),
        out=str(place / "out"),
        compensate=CompensateConfig(lr=1e-3),
        calibration=CalibrationConfig(str(place / "text.txt"), samples=16),
        **changes,
    )


def read(folder):
    record = json.loads((folder / "icp_run.json").read_text())
    layers = [layer["zeros"] for block in record["blocks"] for layer in block["layers"]]
    return (
        [block["error"] for block in record["blocks"]],
        layers,
        load_file(folder / "model.safetensors"),
    )


def alike(one, two, dtype="float32"):
    np.testing.assert_allclose(one[0], two[0], rtol=ERRORS[dtype])
    assert one[1] == two[1]
    names = [name for name in one[2] if ".layers." in name and one[2][name].ndim == 2]
    differ = [np.mean((one[2][name] != 0) != (two[2][name] != 0)) for name in names]
    assert len(names) == 18 and max(differ) <= MASKS[dtype], differ


@pytest.mark.parametrize(
    "what,dtype,streams",
    [
        ("unstructured", "float32", "host"),
        ("unstructured", "float32", "disk"),
        ("unstructured", "bfloat16", "host"),
        ("2:4 with 4 bits", "float32", "device"),
    ],
)
def test_the_cpu_gives_the_same(place, cpu, what, dtype, streams):
    prune, quant = PruneConfig(sparsity=0.5), QuantConfig()
    if what != "unstructured":
        prune, quant = PruneConfig(pattern="2:4"), QuantConfig(bits=4)
    memory = MemoryConfig(streams)
    prune_folder(config_for(place, prune=prune, quant=quant, dtype=dtype, memory=memory))
    alike(read(place / "out"), cpu(what), dtype)


def test_a_resumed_run_is_like_an_uninterrupted_one(place):
    config = config_for(place, prune=PruneConfig(sparsity=0.5), dtype="float32")
    prune_folder(dataclasses.replace(config, out=str(place / "whole")))

    def stop(block, phase, done, total, loss):
        if (block, phase) == (2, "statistics"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_folder(config, stop)
    said = []
    prune_folder(config, resume=True, say=said.append)
    assert said
    alike(read(place / "out"), read(place / "whole"))
