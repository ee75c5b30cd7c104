"""Grids, packed files, and joint pruning and quantization from folder to folder."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import write_opt
from safetensors.numpy import load_file

import icp_jax
from icp_jax import CalibrationConfig, InputError, PruneConfig, QuantConfig, RunConfig
from icp_jax.core.quantize import Grid, make_grid, round_kernel, to_grid
from icp_jax.runs.packed import pack_bits, unpack_bits
from icp_jax.runs.run import prune_folder

KINDS = [
    {},
    {"group": 32},
    {"symmetric": True},
    {"search": True},
    {"group": 64, "symmetric": True, "search": True},
]


@pytest.fixture(scope="module")
def kernel():
    return jnp.asarray(np.random.default_rng(0).normal(size=(128, 24)), jnp.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_grid_holds_zero_and_covers_the_weights(kernel, kind, bits):
    grid = make_grid(kernel, bits, **kind)
    group = kind.get("group", 128)
    assert grid.scale.shape == (128 // group, 24)
    zero = np.asarray(grid.zero)
    assert np.all((zero == np.round(zero)) & (zero >= 0) & (zero <= 2**bits - 1))
    assert np.all(np.asarray(to_grid(jnp.zeros_like(grid.zero), grid)) == 0)
    if not kind.get("search"):
        new = np.asarray(round_kernel(kernel, jnp.ones(kernel.shape, bool), grid))
        step = np.repeat(np.asarray(grid.scale), group, axis=0)
        # at most half a step within the range; the clipped ends may miss by a whole one
        assert np.all(np.abs(new - np.asarray(kernel)) <= step * 1.001)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_search_never_rounds_worse(kernel, bits):
    def error(**kind):
        new = round_kernel(kernel, jnp.ones(kernel.shape, bool), make_grid(kernel, bits, **kind))
        return np.square(np.asarray(new - kernel)).sum(0)

    assert np.all(error(search=True) <= error() * 1.0001)
    assert error(search=True).sum() < error().sum()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_file_holds_the_scales_exactly(kernel, dtype):
    wide = kernel * jnp.logspace(-7, 7, kernel.shape[1])[None]  # steps far below float16's as well
    scale = make_grid(wide, 4, group=32, dtype=dtype).scale
    np.testing.assert_array_equal(scale, scale.astype(dtype).astype(jnp.float32))
    exact = make_grid(wide, 4, group=32).scale
    least = jnp.finfo(dtype).tiny.astype(jnp.float32)
    want = jnp.maximum(exact.astype(dtype).astype(jnp.float32), least)
    np.testing.assert_array_equal(scale, want)


def test_an_empty_channel_has_a_grid():
    grid = make_grid(jnp.zeros((32, 3), jnp.float32), 4)
    assert np.all(np.isfinite(grid.scale)) and np.all(np.asarray(grid.scale) > 0)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 172])
def test_packing_is_its_inverse(bits, count):
    levels = np.random.default_rng(0).integers(0, 2**bits, (5, count))
    words = pack_bits(levels, bits)
    assert words.dtype == np.int32 and words.shape == (5, -(-count * bits // 32))
    np.testing.assert_array_equal(unpack_bits(words, bits, count), levels)


def run(folder, out, text, quant, **prune):
    prune = prune if "pattern" in prune else {"sparsity": 0.5, **prune}
    return prune_folder(
        RunConfig(
            model=str(folder),
            out=str(out),
            prune=PruneConfig(**prune),
            quant=quant,
            calibration=CalibrationConfig(str(text), samples=4),
        )
    )


@pytest.fixture
def text(bundled, tmp_path):
    (tmp_path / "text.txt").write_text((bundled / "calibration.txt").read_text()[:6000])
    return tmp_path / "text.txt"


@pytest.mark.parametrize("method", ["icp", "wanda"])
def test_dequantized_export_lies_on_its_grid(tmp_path, text, opt_folder, method):
    quant = QuantConfig(bits=3)
    out = run(opt_folder, tmp_path / "out", text, quant, method=method, pattern="2:4").out
    weight = load_file(out / "model.safetensors")["model.decoder.layers.1.fc1.weight"]
    assert np.all((weight != 0).reshape(len(weight), -1, 4).sum(2) <= 2)
    assert max(len(np.unique(row)) for row in weight) <= 2**3
    record = json.loads((out / "icp_run.json").read_text())
    assert record["config"]["quant"]["bits"] == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_packed_equals_dequantized(tmp_path, text, kind, bits, dtype):
    model = write_opt(tmp_path / "m", dtype, hidden_size=64, word_embed_proj_dim=64)
    a = run(model, tmp_path / "a", text, QuantConfig(bits=bits, **kind)).out
    b = run(model, tmp_path / "b", text, QuantConfig(bits=bits, packed=True, **kind)).out
    plain, packed = icp_jax.verify(a), icp_jax.verify(b, source=a)
    assert packed["zeros"] == plain["zeros"] and packed["layers"] == plain["layers"]
    assert packed["changed"] == packed["missing"] == packed["added"] == []
    assert len(packed["unchanged"]) == len(load_file(a / "model.safetensors"))
    names = load_file(b / "model.safetensors")
    assert ("model.decoder.layers.0.fc1.weight_zero_point" in names) != kind.get("symmetric", False)


@pytest.mark.needs_torch
@pytest.mark.parametrize("kind", [{"symmetric": True}, KINDS[-1]])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.filterwarnings("default")
def test_transformers_loads_the_packed_form(tmp_path, text, kind, bits):
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    model = write_opt(tmp_path / "m", np.float32, hidden_size=64, word_embed_proj_dim=64)
    a = run(model, tmp_path / "a", text, QuantConfig(bits=bits, **kind)).out
    b = run(model, tmp_path / "b", text, QuantConfig(bits=bits, packed=True, **kind)).out
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 2048, (2, 30)))
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(a)(ids).logits
        packed = AutoModelForCausalLM.from_pretrained(b)(ids).logits
    np.testing.assert_allclose(packed.numpy(), plain.numpy(), atol=1e-4)


@pytest.mark.needs_torch
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.filterwarnings("default")
def test_compressed_tensors_unpacks_it(tmp_path, text, kind, bits):
    """Asymmetric ones too, whose zero points transformers' loader makes room for in no release
    that also takes three bits: here by the library's own decompressor, tensor by tensor."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    model = write_opt(tmp_path / "m", np.float16, hidden_size=64, word_embed_proj_dim=64)
    a = run(model, tmp_path / "a", text, QuantConfig(bits=bits, **kind)).out
    b = run(model, tmp_path / "b", text, QuantConfig(bits=bits, packed=True, **kind)).out
    config = json.loads((b / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    plain, packed = (load_file(f / "model.safetensors") for f in (a, b))
    name = "model.decoder.layers.2.fc1.weight"
    state = {
        key.removeprefix(name.removesuffix("weight")): torch.from_numpy(value)
        for key, value in packed.items()
        if key.startswith(f"{name}_")
    }
    ours = PackedQuantizationCompressor.decompress(state, scheme)["weight"].numpy()
    np.testing.assert_array_equal(ours, plain[name])


@pytest.mark.parametrize(
    "quant,message",
    [
        (QuantConfig(bits=1), "from 2 to 8, got 1"),
        (QuantConfig(bits=9), "from 2 to 8, got 9"),
        (QuantConfig(bits=4, group=48), "32, 64 or 128, got 48"),
        (QuantConfig(bits=4, group=64), "has 32 inputs, not a multiple of 64"),
        (QuantConfig(packed=True), "need quant.bits"),
    ],
)
def test_bad_settings(tmp_path, text, opt_folder, quant, message):
    with pytest.raises(InputError, match=message):
        run(opt_folder, tmp_path / "out", text, quant)
    assert not (tmp_path / "out").exists()


def test_the_levels_are_what_the_grid_says():
    grid = Grid(jnp.asarray([[0.5]]), jnp.asarray([[2.0]]), jnp.int32(7))
    values = to_grid(jnp.asarray([[-9.0], [-0.3], [0.2], [9.0]]), grid)
    np.testing.assert_array_equal(np.asarray(values)[:, 0], [-1.0, -0.5, 0.0, 2.5])
