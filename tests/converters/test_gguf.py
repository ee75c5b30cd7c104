"""Models in GGUF against the weights they were made of, and against transformers' torch classes."""

import json
import subprocess
import sys

import gguf_oracle as oracle
import ml_dtypes
import numpy as np
import pytest
from conftest import LLAMA
from gguf import GGMLQuantizationType, quants

import icp_jax
from converters.files import open_checkpoint
from converters.gguf_files import GgufReader
from converters.gguf_rope import llama3_factors
from icp_jax.runs.convert import convert

torch_too = pytest.mark.needs_torch
TINY = {**LLAMA, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
WIDE = {**TINY, "head_dim": 32}
L3 = {"rope_type": "llama3", "original_max_position_embeddings": 8192}


def waves(theta, dim):
    return 2 * np.pi * theta ** (np.arange(0, dim, 2) / dim)


def frequencies(factor, low, high, theta=10000.0, dim=32, context=8192):
    factors = llama3_by_hand(waves(theta, dim), factor, low, high, context)
    return lambda writer: writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))


def llama3_by_hand(lengths, factor, low, high, context):
    """The scaling as Llama 3's authors state it, by cases."""
    found = []
    for wave in lengths:
        if wave < context / high:
            found.append(1.0)
        elif wave > context / low:
            found.append(factor)
        else:
            smooth = (context / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found)


def linear(writer):
    writer.add_rope_scaling_type(oracle_scaling("linear"))
    writer.add_rope_scaling_factor(3.0)


def yarn(writer):
    writer.add_rope_scaling_type(oracle_scaling("yarn"))
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(16)


def oracle_scaling(name):
    from gguf import RopeScalingType

    return RopeScalingType(name)


MODELS = {  # name: (config, what the GGUF file says besides, in its metadata)
    "llama": (TINY, ()),
    "tied": ({**TINY, "tie_word_embeddings": True}, ()),
    "biases": ({**TINY, "attention_bias": True, "mlp_bias": True}, ()),
    "head_dim and theta": ({**WIDE, "rope_theta": 500.0, "rms_norm_eps": 1e-5}, ()),
    "linear": ({**TINY, "rope_scaling": {"rope_type": "linear", "factor": 3.0}}, (linear,)),
    "yarn": (
        {
            **WIDE,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
        (yarn,),
    ),
    "llama3": (
        {
            **WIDE,
            "rope_scaling": {**L3, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        },
        (frequencies(8.0, 1.0, 4.0),),
    ),
    "mistral": (
        {**TINY, "model_type": "mistral", "sliding_window": 9},
        (lambda writer: writer.add_sliding_window(9),),
    ),
    "qwen2": ({**TINY, "model_type": "qwen2"}, ()),
    "qwen3": ({**WIDE, "model_type": "qwen3", "tie_word_embeddings": True}, ()),
}


@torch_too
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_model_it_was_made_of(name, tmp_path):
    """Of the torch class on the original weights, and of it on the converted folder."""
    import torch_oracle
    from transformers import AutoModelForCausalLM

    config, add = MODELS[name]
    model = torch_oracle.model_of(config)
    state = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        state.pop("lm_head.weight")
    path = oracle.write_gguf(tmp_path / "model.gguf", config, state, add=add)
    convert(path, tmp_path / "out", "float32")
    tokens = np.random.default_rng(0).integers(0, 97, (2, 40))
    want = torch_oracle.logits_of(model, tokens)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32").eval()
    np.testing.assert_allclose(torch_oracle.logits_of(theirs, tokens), want, atol=1e-4, rtol=0)
    ours = icp_jax.load(tmp_path / "out").logits(tokens)
    np.testing.assert_allclose(ours, want, atol=1e-4, rtol=0)


@torch_too
@pytest.mark.parametrize("name", ["llama", "tied", "qwen2", "qwen3"])
def test_transformers_reads_the_same_weights(name, tmp_path):
    """Their own reader of GGUF is another oracle, for what it can read."""
    import torch_oracle
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config, add = MODELS[name]
    state = oracle.random_state(config)
    path = oracle.write_gguf(tmp_path / "model.gguf", config, state, kind="F16", add=add)
    model = torch_oracle.model_of(config)
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    assert theirs.keys() == state.keys()
    reader = GgufReader(path, np.dtype(np.float32))
    for tensor in theirs:
        np.testing.assert_array_equal(reader.read(tensor), theirs[tensor].numpy(), err_msg=tensor)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_tensor_is_what_gguf_dequantizes(kind, dtype, tmp_path):
    state = oracle.random_state(TINY)
    path = oracle.write_gguf(tmp_path / "model.gguf", TINY, state, kind=kind)
    convert(path, tmp_path / "out", dtype)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == dtype
    reader = open_checkpoint(tmp_path / "out")
    assert set(reader.names()) == set(state)
    stored = GGMLQuantizationType[kind]
    for name, weight in state.items():
        want = weight
        if weight.ndim > 1:
            want = quants.dequantize(quants.quantize(weight, stored), stored).reshape(weight.shape)
        got = reader.read(name)
        assert got.dtype == np.dtype(dtype) and got.shape == weight.shape
        np.testing.assert_array_equal(got, want.astype(dtype), err_msg=name)


K_KINDS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ3_S", "TQ1_0"]


@pytest.mark.parametrize("kind", K_KINDS)
def test_types_that_only_llama_cpp_quantizes(kind, tmp_path):
    """Random bytes, since the package cannot quantize to them."""
    from gguf.constants import GGML_QUANT_SIZES

    stored = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[stored]
    rng = np.random.default_rng(0)
    config = {**TINY, "intermediate_size": 2 * block}
    raw = rng.integers(0, 48, (64, 2 * size), np.uint8)  # small bytes: no scale is infinite
    state = oracle.random_state(config)
    gone = "model.layers.1.mlp.down_proj.weight"
    state.pop(gone)
    path = oracle.write_gguf(
        tmp_path / "model.gguf",
        config,
        state,
        add=[lambda w: w.add_tensor("blk.1.ffn_down.weight", raw, raw_dtype=stored)],
    )
    reader = open_checkpoint(path)
    want = quants.dequantize(raw, stored)
    np.testing.assert_array_equal(reader.read(gone), want.astype(np.float16))


@pytest.mark.parametrize(
    "factor,low,high,context", [(8, 1, 4, 8192), (32, 1, 4, 8192), (4, 2, 6, 4096)]
)
def test_llama3_scaling_is_found_again_from_its_factors(factor, low, high, context, tmp_path):
    """Any three of its settings that give the same factors are the same scaling."""
    config = {**TINY, "head_dim": 128, "rope_theta": 500000.0}
    add = frequencies(factor, low, high, 500000.0, 128, context)
    path = oracle.write_gguf(
        tmp_path / "model.gguf", config, oracle.random_state(config), add=[add]
    )
    found = open_checkpoint(path).config["rope_scaling"]
    lengths = waves(500000.0, 128)
    settings = [found[f"{x}"] for x in ("factor", "low_freq_factor", "high_freq_factor")]
    got = llama3_factors(lengths, *settings, found["original_max_position_embeddings"])
    want = llama3_by_hand(lengths, factor, low, high, context)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_parts_are_read_as_one_model(tmp_path):
    state = oracle.random_state(TINY)
    whole = oracle.write_gguf(tmp_path / "whole.gguf", TINY, state)
    oracle.write_gguf(tmp_path / "model.gguf", TINY, state, split_max_tensors=8)
    parts = sorted(tmp_path.glob("model-*-of-*.gguf"))
    assert len(parts) > 3
    one = open_checkpoint(whole)
    for part in (parts[0], parts[2]):
        reader = open_checkpoint(part)
        assert reader.files == {p.name: p for p in parts} and reader.config == one.config
        for name in one.names():
            np.testing.assert_array_equal(reader.read(name), one.read(name))


def test_memory_is_of_a_tensor_and_not_of_the_model(tmp_path):
    """The file is 110 MiB, its largest tensor 16 MiB."""
    config = {**TINY, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2}
    config = {**config, "num_hidden_layers": 4, "num_attention_heads": 16}
    path = oracle.write_gguf(
        tmp_path / "model.gguf", config, oracle.random_state(config), kind="F16"
    )
    code = (
        "import resource, sys; from icp_jax.runs.convert import convert;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10;"
        "import gguf, tokenizers; before = peak(); convert(*sys.argv[1:]);"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "out")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert path.stat().st_size > 100 << 20
    assert int(found.stdout) < 80, found.stdout


def test_bfloat16_keeps_what_float16_cannot(tmp_path):
    state = oracle.random_state(TINY)
    state["model.layers.0.mlp.up_proj.weight"][3, 5] = 1e5
    path = oracle.write_gguf(tmp_path / "model.gguf", TINY, state, kind="BF16")
    convert(path, tmp_path / "out", "bfloat16")
    got = open_checkpoint(tmp_path / "out").read("model.layers.0.mlp.up_proj.weight")
    assert got[3, 5] == ml_dtypes.bfloat16(1e5)
