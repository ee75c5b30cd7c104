"""`icp-jax masks`: the zeros of a folder as packed bits, by torch's and by Flax's names."""

import json

import jax
import numpy as np
import optax
import pytest
from conftest import write_llama
from packing import write_pruned
from safetensors.numpy import load_file, save_file

import icp_jax
from converters.rules import ConversionError
from icp_jax import InputError
from icp_jax.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    write_pruned(folder / "m", hidden_size=36, word_embed_proj_dim=36, ffn_dim=100)
    icp_jax.save_masks(folder / "m", folder / "masks")
    return folder


def test_masks_are_those_of_the_weights(place, capsys):
    held = load_file(place / "m" / "model.safetensors")
    masks = icp_jax.load_masks(place / "masks", "torch")
    assert len(masks) == 18
    for name, keep in masks.items():
        assert keep.dtype == bool
        np.testing.assert_array_equal(keep, held[name] != 0)
    tree = icp_jax.load_masks(place / "masks")
    params = icp_jax.load(place / "m").params["blocks"]
    jax.tree.map_with_path(
        lambda path, keep: np.testing.assert_array_equal(keep, _at(params, path) != 0),
        tree["blocks"],
    )
    assert len(jax.tree.leaves(tree)) == 18
    sizes = sum(p.stat().st_size for p in (place / "masks").iterdir())
    assert sizes < 2 * sum(k.shape[0] * (k.shape[1] // 8 + 1) for k in masks.values()) + 20_000


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_the_bits_are_as_documented(place):
    held = load_file(place / "m" / "model.safetensors")
    for name, bits in load_file(place / "masks" / "torch.safetensors").items():
        columns = held[name].shape[1]
        keep = np.unpackbits(bits, axis=1, count=columns, bitorder="little")
        np.testing.assert_array_equal(keep, held[name] != 0)


def test_keep_zeros_takes_them(place):
    params = icp_jax.load(place / "m", dtype="float32").params
    tx = icp_jax.keep_zeros(optax.sgd(0.1), icp_jax.load_masks(place / "masks"))
    updates, _ = tx.update(jax.tree.map(np.ones_like, params), tx.init(params), params)
    new = optax.apply_updates(params, updates)
    before, after = (p["blocks"]["1"]["fc1"]["kernel"] for p in (params, new))
    np.testing.assert_array_equal(np.asarray(after) == 0, before == 0)


def test_the_command(place, tmp_path, capsys):
    for model in (place / "m", write_llama(tmp_path / "llama")):
        out = tmp_path / f"{model.name}.masks"
        assert main(["masks", str(model), str(out), "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        verified = icp_jax.verify(model)
        assert (record["zeros"], record["size"]) == (verified["zeros"], verified["size"])
    icp_jax.pack(place / "m", tmp_path / "p")
    assert main(["masks", str(tmp_path / "p"), str(tmp_path / "o")]) == 0
    assert "18 masks" in capsys.readouterr().out
    for name in ("torch.safetensors", "flax.safetensors"):
        held = (place / "masks" / name).read_bytes()
        assert (tmp_path / "o" / name).read_bytes() == held


def test_files_that_hold_no_masks(place, tmp_path):
    with pytest.raises(InputError, match="kind must be"):
        icp_jax.load_masks(place / "masks", "jax")
    with pytest.raises(InputError, match="is missing"):
        icp_jax.load_masks(tmp_path)
    path = tmp_path / "flax.safetensors"
    bits = np.zeros((3, 2), np.uint8)
    for tensors, metadata in (
        ({"a/b": bits}, None),
        ({"a/b": bits}, {"columns": "[]"}),
        ({"a/b": bits}, {"columns": "{}"}),
        ({"a/b": bits}, {"columns": '{"a/b": 17}'}),
        ({"a/b": bits[0]}, {"columns": '{"a/b": 16}'}),
        ({"a/b": bits, "a": bits}, {"columns": '{"a/b": 16, "a": 16}'}),
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(ConversionError) as error:
            icp_jax.load_masks(tmp_path)
        assert "\n" not in str(error.value)
