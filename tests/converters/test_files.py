"""Shards read and written: bytes, layouts, and files that are not what they should be."""

import json

import ml_dtypes
import numpy as np
import pytest
from conftest import write_opt
from safetensors.numpy import load_file, save_file

from converters.files import ConversionError, open_checkpoint
from converters.layout import plan_layout
from converters.safetensors_files import Writer
from icp_jax.streaming import storage


def test_reads_what_safetensors_wrote(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4, dtype=np.float16),
        "c": np.arange(4).astype(ml_dtypes.bfloat16).reshape(2, 2),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    reader = open_checkpoint(tmp_path)
    assert sorted(reader.names()) == ["a", "b", "c"]
    for name, tensor in tensors.items():
        assert reader.read(name).dtype == tensor.dtype
        np.testing.assert_array_equal(reader.read(name), tensor)


def test_same_layout_gives_the_same_bytes(tmp_path):
    folder = write_opt(tmp_path / "a", shard_bytes=40_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    reader = open_checkpoint(folder)
    (tmp_path / "b").mkdir()
    writer = Writer(tmp_path / "b", reader.layout)
    for name in reversed(reader.names()):
        writer.write(name, reader.read(name))
    writer.close()
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_transposed_view_is_written_in_its_order(tmp_path):
    a = np.arange(6, dtype=np.float32).reshape(2, 3).T
    writer = Writer(tmp_path, plan_layout({"a": (a.dtype, a.shape)}, {}))
    writer.write("a", a)
    writer.close()
    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")["a"], a)


def test_refuses_a_tensor_that_does_not_fit(tmp_path):
    writer = Writer(tmp_path, plan_layout({"a": (np.dtype(np.float32), (2, 3))}, {}))
    with pytest.raises(ConversionError, match="'a'"):
        writer.write("a", np.zeros((3, 2), np.float32))
    with pytest.raises(ConversionError, match="'a'"):
        writer.write("a", np.zeros((2, 3), np.float16))
    writer.abandon()


@pytest.mark.needs_torch
@pytest.mark.parametrize("sharded", [False, True])
def test_bin_shards(tmp_path, sharded):
    torch = pytest.importorskip("torch")
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(3, dtype=torch.bfloat16)}
    if sharded:
        for k, (name, tensor) in enumerate(state.items()):
            torch.save({name: tensor}, tmp_path / f"pytorch_model-{k}.bin")
        weight_map = {name: f"pytorch_model-{k}.bin" for k, name in enumerate(state)}
        index = json.dumps({"weight_map": weight_map})
        (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    reader = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(reader.read("a"), state["a"].numpy())
    assert reader.read("b").dtype == ml_dtypes.bfloat16
    assert reader.shape("a") == (3, 2)


@pytest.mark.needs_torch
@pytest.mark.parametrize("zipped", [True, False])
def test_bin_shards_give_their_pages_back(tmp_path, zipped):
    """What was read stays good, whether it could be mapped or not."""
    torch = pytest.importorskip("torch")
    state = {"a": torch.arange(1 << 21, dtype=torch.float32), "b": torch.ones(8)}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    reader = open_checkpoint(tmp_path)
    reader.fetch(["a"])
    a = reader.read("a")
    assert a.sum(dtype=np.float64) == (1 << 20) * ((1 << 21) - 1)
    before = storage.proc("self/status", "RssFile")
    reader.forget()
    given_back = before - storage.proc("self/status", "RssFile")
    assert given_back > 7 << 20 if zipped else given_back < 1 << 20
    np.testing.assert_array_equal(a, np.arange(1 << 21))
    np.testing.assert_array_equal(reader.read("b"), np.ones(8))


@pytest.mark.needs_torch
def test_bin_of_a_dtype_unheard_of(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(3, dtype=torch.complex64)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="'a' has dtype complex64"):
        open_checkpoint(tmp_path)


@pytest.mark.needs_torch
def test_bin_runs_no_code(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="cannot be read"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "touched").exists()
