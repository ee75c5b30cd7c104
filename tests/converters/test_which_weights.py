"""Which files of a folder are loaded, counted and copied; and files that only look like weights."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from conftest import write_opt
from safetensors.numpy import load_file

import icp_jax
from converters.files import open_checkpoint
from converters.rules import ConversionError
from icp_jax.runs.convert import convert
from icp_jax.runs.fingerprint import Weights
from icp_jax.streaming.source import FolderSource

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path):
    return write_opt(tmp_path / "m", num_hidden_layers=1, shard_bytes=90_000)


def index_of(folder):
    return json.loads((folder / INDEX).read_text())


def test_a_single_file_wins_over_an_index_as_in_transformers(sharded, tmp_path):
    other = write_opt(tmp_path / "other", num_hidden_layers=1, seed=7)
    shutil.copy(other / "model.safetensors", sharded)
    name = "model.decoder.layers.0.fc1.weight"
    want = load_file(other / "model.safetensors")[name]
    reader = open_checkpoint(sharded)
    assert np.array_equal(reader.read(name), want) and list(reader.files) == ["model.safetensors"]


@pytest.mark.needs_torch
def test_the_same_weights_as_transformers_of_many(sharded, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    name, other = (
        "model.decoder.layers.0.fc1.weight",
        write_opt(tmp_path / "o", num_hidden_layers=1),
    )
    state = {k: torch.from_numpy(v * 2) for k, v in load_file(other / "model.safetensors").items()}
    torch.save(state, sharded / "pytorch_model.bin")
    for more in (None, "model.safetensors"):
        if more:
            shutil.copy(write_opt(tmp_path / "p", num_hidden_layers=1, seed=7) / more, sharded)
        theirs = AutoModelForCausalLM.from_pretrained(sharded).state_dict()[name].numpy()
        assert np.array_equal(open_checkpoint(sharded).read(name), theirs)


def test_only_the_named_files_are_counted_and_copied(sharded, tmp_path):
    for name in ("consolidated.safetensors", "optimizer.pt", "pytorch_model.bin", "model-q4.gguf"):
        (sharded / name).write_bytes(b"other weights")
    (sharded / "icp_run.json").write_text('{"sparsity": 0.9}')
    source = FolderSource(sharded)
    shards = {*index_of(sharded)["weight_map"].values()}
    assert set(Weights(source).digests) == shards | {"config.json"}
    out = icp_jax.save(icp_jax.load(sharded), tmp_path / "out")
    side = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in out.iterdir()} == shards | {INDEX} | side
    convert(sharded, tmp_path / "orbax")
    assert {p.name for p in (tmp_path / "orbax" / "hf").iterdir()} == {"layout.json"} | side


@pytest.mark.parametrize("stale", ["total", "map", "no metadata"])
def test_an_index_is_made_right_on_export(sharded, tmp_path, stale):
    right, wrong = index_of(sharded), index_of(sharded)
    if stale == "total":
        wrong["metadata"] = {"total_size": 7, "kept": "x"}
    elif stale == "map":
        first, second = sorted(set(right["weight_map"].values()))[:2]
        swap = {first: second, second: first}
        wrong["weight_map"] = {k: swap.get(v, v) for k, v in right["weight_map"].items()}
    else:
        del wrong["metadata"]
    (sharded / INDEX).write_text(json.dumps(wrong))
    found = index_of(icp_jax.save(icp_jax.load(sharded), tmp_path / "out"))
    assert found["weight_map"] == right["weight_map"]
    assert found["metadata"]["total_size"] == right["metadata"]["total_size"]
    assert stale != "total" or found["metadata"]["kept"] == "x"


@pytest.mark.parametrize(
    "text", ["[]", "{", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 99_999, "\xff\xfe"]
)
def test_an_index_that_is_none(sharded, text):
    (sharded / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(
        ConversionError, match=f"{INDEX} (is not|cannot be|names no shards)"
    ) as error:
        open_checkpoint(sharded)
    assert "\n" not in str(error.value)


def test_a_tensor_in_two_shards_names_both(sharded):
    first, second = sorted(set(index_of(sharded)["weight_map"].values()))[:2]
    shutil.copy(sharded / first, sharded / second)
    with pytest.raises(ConversionError, match=f"in {first} and {second}"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "a, b", [([0, 8], [4, 12]), ([0, 8], [12, 20]), ([-8, 0], [0, 8]), ([8, 16], [0, 8])]
)
def test_tensors_that_overlap_or_leave_gaps(tmp_path, a, b):
    header = json.dumps(
        {
            k: {"dtype": "F32", "shape": [2], "data_offsets": at}
            for k, at in zip("ab", (a, b), strict=True)
        }
    ).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(max(a[1], b[1]))
    (tmp_path / "model.safetensors").write_bytes(data)
    if sorted([a, b]) == [[0, 8], [8, 16]]:
        assert open_checkpoint(tmp_path).read("a").tolist() == [0, 0]
        return
    with pytest.raises(ConversionError, match="overlaps|header"):
        open_checkpoint(tmp_path)


@pytest.mark.needs_torch
@pytest.mark.parametrize("zipped", [True, False])
def test_a_bin_of_parameters(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    state = {"a": torch.nn.Parameter(torch.arange(6.0)), "b": torch.ones(2)}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert open_checkpoint(tmp_path).read("a").tolist() == [0, 1, 2, 3, 4, 5]


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


PAGE, POINTER = b"\n<!DOCTYPE html>\n<html>404", b"version https://git-lfs.github.com/spec/v1\noid"
NO_WEIGHTS = {
    "code": (pickle.dumps({"a": Code()}, 2), "may be code"),
    "page": (PAGE, "holds a web page, not weights"),
    "pointer": (POINTER, "pointer of Git LFS"),
    "empty": (b"", "is empty"),
    "text": (b'{"error": "x"}', "cannot be read"),
    "zip": (b"PK\x03\x04" + bytes(99), "cannot be read"),
}


@pytest.mark.needs_torch
@pytest.mark.parametrize("name", ["pytorch_model.bin", "sam.pth"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_a_torch_file_that_is_none_is_refused_in_our_words(tmp_path, monkeypatch, kind, name):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    content, said = NO_WEIGHTS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match=said) as error:
        open_checkpoint(tmp_path)
    line = str(error.value)
    assert "weights_only" not in line and "\x1b" not in line and "\n" not in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [PAGE, POINTER, b""])
def test_a_safetensors_file_that_is_none(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConversionError, match="web page|Git LFS|is empty"):
        open_checkpoint(tmp_path)
