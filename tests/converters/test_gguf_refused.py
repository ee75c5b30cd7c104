"""GGUF files that are no models of ours: one line each, and nothing written."""

import errno

import gguf_oracle as oracle
import numpy as np
import pytest
from conftest import LLAMA
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES

from converters import ConversionError
from converters.files import open_checkpoint
from icp_jax import InputError
from icp_jax.cli import main
from icp_jax.runs.convert import convert

Q8_1_BYTES = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_1][1]  # of a block
REFUSED = (ConversionError, InputError)


@pytest.fixture(scope="module")
def state():
    return oracle.random_state(LLAMA)


@pytest.fixture
def model(tmp_path, state):
    return oracle.write_gguf(tmp_path / "model.gguf", LLAMA, state)


def refused(path, message, dtype=None):
    """The conversion is refused in one line, and leaves nothing."""
    before = sorted(p.name for p in path.parent.iterdir())
    with pytest.raises(REFUSED, match=message) as raised:
        convert(path, path.parent / "out", dtype)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400 + len(str(path))
    assert sorted(p.name for p in path.parent.iterdir()) == before


def test_a_truncated_file_at_any_length(model):
    whole = model.read_bytes()
    for share in np.linspace(0, 1, 41)[1:-1]:
        model.write_bytes(whole[: int(share**4 * len(whole))])
        refused(model, "is truncated, damaged or of a newer format|is empty|is not a GGUF file")
    model.write_bytes(whole[:-1])
    refused(model, "truncated, damaged or of a newer format .*ends too early.*fetch it again")


def test_damaged_bytes_in_the_header_are_refused_or_harmless(model):
    whole, rng = bytearray(model.read_bytes()), np.random.default_rng(0)
    for at in rng.integers(4, 4000, 60):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        model.write_bytes(damaged)
        try:
            open_checkpoint(model).close()
        except ConversionError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "content,message",
    [
        (b"", "is empty: fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04 something else", "is not a GGUF file"),
        (b"GGUF\x63\0\0\0" + b"\0" * 64, "of a newer format .*version"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 64, "truncated, damaged"),
    ],
)
def test_another_kind_of_file(content, message, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    refused(path, message)


def test_a_missing_part(tmp_path, state):
    oracle.write_gguf(tmp_path / "model.gguf", LLAMA, state, split_max_tensors=8)
    first, second, *_ = sorted(tmp_path.glob("*.gguf"))
    kept = second.read_bytes()
    second.unlink()
    refused(first, f"is one of . parts, and {second.name} is missing")
    second.write_bytes(kept)
    first.rename(first.with_name("renamed.gguf"))
    refused(first.with_name("renamed.gguf"), r"is one of \d parts: name them NAME-00001-of-0000")


def test_a_part_twice(tmp_path, state):
    oracle.write_gguf(tmp_path / "model.gguf", LLAMA, state, split_max_tensors=8)
    _, second, third, *_ = sorted(tmp_path.glob("*.gguf"))
    third.write_bytes(second.read_bytes())
    refused(second, "duplicate tensor 'blk")


def replaced(writer, key, add):
    for data in writer.kv_data:
        data.pop(key, None)
    add(key)


CHANGES = {
    "architecture": (
        lambda w: replaced(w, "general.architecture", lambda k: w.add_string(k, "gemma3")),
        "architecture 'gemma3', which is not supported; supported: llama, qwen2, qwen3",
    ),
    "experts": (lambda w: w.add_expert_count(8), "mixture of experts"),
    "rope scaling": (
        lambda w: [
            w.add_string("llama.rope.scaling.type", "longrope"),
            w.add_rope_scaling_factor(2.0),
        ],
        "rope scaling 'longrope' is not supported; supported: linear, yarn",
    ),
    "partial rotary": (lambda w: w.add_rope_dimension_count(4), "dimension_count is not the head"),
    "widths by block": (
        lambda w: replaced(w, "llama.feed_forward_length", lambda k: w.add_array(k, [80, 80, 96])),
        "feed_forward_length must be one number for all blocks",
    ),
    "no epsilon": (
        lambda w: replaced(w, "llama.attention.layer_norm_rms_epsilon", lambda k: None),
        "has no llama.attention.layer_norm_rms_epsilon",
    ),
    "unknown tensor": (
        lambda w: w.add_tensor("blk.0.ffn_gate_inp.weight", np.zeros((4, 48), np.float32)),
        "unknown tensor 'blk.0.ffn_gate_inp.weight'",
    ),
    "a type": (
        lambda w: w.add_tensor(
            "output.bias", np.zeros((2, Q8_1_BYTES), np.uint8), raw_dtype=GGMLQuantizationType.Q8_1
        ),
        "'output.bias' has type Q8_1, which the gguf package cannot dequantize",
    ),
    "frequencies": (
        lambda w: w.add_tensor("rope_freqs.weight", np.array([1, 9, 2, 7], np.float32)),
        "no scaling of Llama 3",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_is_not_supported(name, tmp_path, state):
    change, message = CHANGES[name]
    path = oracle.write_gguf(tmp_path / "a.gguf", LLAMA, state, add=[change])
    refused(path, message)


def test_tensors_that_do_not_fit_the_metadata(tmp_path, state):
    less = {k: v for k, v in state.items() if k != "model.layers.1.mlp.down_proj.weight"}
    path = oracle.write_gguf(tmp_path / "a.gguf", LLAMA, less)
    refused(path, "missing tensor .*layers.1.mlp.down_proj.weight")
    other = {**state, "model.layers.1.mlp.down_proj.weight": np.ones((48, 64), np.float32)}
    path = oracle.write_gguf(tmp_path / "a.gguf", LLAMA, other)
    refused(path, "layers.1.mlp.down_proj.weight")


def test_values_beyond_float16_and_none_at_all(tmp_path, state):
    name = "model.layers.0.mlp.up_proj.weight"
    for value, message in ((1e5, "beyond float16: .* --dtype bfloat16"), (np.nan, "not finite")):
        weight = state[name].copy()
        weight[3, 5] = value
        path = oracle.write_gguf(tmp_path / "a.gguf", LLAMA, {**state, name: weight})
        refused(path, message)


def test_a_full_disk_leaves_nothing(model, monkeypatch, capsys):
    from converters.safetensors_files import Writer

    def full(self, name, tensor):
        raise OSError(errno.ENOSPC, "No space left on device")

    before, content = sorted(model.parent.iterdir()), model.read_bytes()
    monkeypatch.setattr(Writer, "write", full)
    assert main(["convert", str(model), str(model.parent / "out")]) != 0
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(model.parent.iterdir()) == before and model.read_bytes() == content


def test_arguments_of_the_command(model, opt_folder, tmp_path, capsys):
    cases = {
        "no such file": [str(tmp_path / "other.gguf"), str(tmp_path / "out")],
        "exists already": [str(model), str(tmp_path)],
        "--dtype is for a .gguf file": [str(opt_folder), str(tmp_path / "o"), "--dtype", "float16"],
    }
    for message, args in cases.items():
        assert main(["convert", *args]) == 2
        assert message in capsys.readouterr().err
