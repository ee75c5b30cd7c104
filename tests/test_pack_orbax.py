"""Packed Orbax folders: the same tree and side files again, and a model in between."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import write_llama
from packing import NAME, files, write_pruned
from safetensors.numpy import load_file, save_file

import icp_jax
from converters.files import open_checkpoint
from icp_jax.cli import main
from icp_jax.runs.convert import convert
from icp_jax.runs.trees import read_tree, save_tree

OF_ARRAYS = ("params/d", "params/manifest.ocdbt", "params/ocdbt.process_")


def bits(folder):
    leaves = jax.tree_util.tree_leaves_with_path(read_tree(folder / "params"))
    return {str(path): (leaf.dtype, leaf.shape, leaf.tobytes()) for path, leaf in leaves}


def others(folder):
    """The files of an Orbax folder but for those of arrays, which have random names."""
    return {name: data for name, data in files(folder).items() if not name.startswith(OF_ARRAYS)}


def same(one, two):
    assert bits(one) == bits(two)
    assert others(one) == others(two)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("orbax")
    write_pruned(place / "m")
    convert(place / "m", place / "x")
    icp_jax.pack(place / "x", place / "p")
    return place


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": np.float16, "shard_bytes": 12_000},
        {"dtype": ml_dtypes.bfloat16, "pattern": (2, 4)},
        {"dtype": np.float32, "sparsity": 0.9},
    ],
    ids=["shards", "bfloat16", "float32"],
)
def test_the_tree_comes_back(tmp_path, options):
    source, orbax = write_pruned(tmp_path / "m", **options), tmp_path / "x"
    convert(source, orbax)
    (orbax / "notes.txt").write_text("mine")
    (orbax / "hf" / "sub").mkdir()
    record = icp_jax.pack(orbax, tmp_path / "p")
    again = icp_jax.unpack(tmp_path / "p", tmp_path / "u")
    same(tmp_path / "u", orbax)
    arrays = [path for path in (orbax / "params").rglob("*") if path.is_file()]
    assert record["bytes"] == sum(path.stat().st_size for path in arrays)
    assert again["packed_bytes"] == record["packed_bytes"] and len(record["layers"]) == 18
    convert(tmp_path / "u", tmp_path / "back")
    assert files(tmp_path / "back") == files(source)
    icp_jax.pack(source, tmp_path / "q")
    for path in (tmp_path / "q").iterdir():
        assert path.read_bytes() == (tmp_path / "p" / path.name).read_bytes(), path.name


def test_it_stands_for_the_model(made, tmp_path, capsys):
    assert main(["verify", str(made / "p"), "--source", str(made / "m"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == []
    icp_jax.save(icp_jax.load(made / "p"), tmp_path / "saved")
    assert files(tmp_path / "saved") == files(made / "m")
    assert main(["convert", str(made / "p"), str(tmp_path / "x")]) == 0
    assert bits(tmp_path / "x") == bits(made / "x")


def test_tensors_outside_the_tree(tmp_path):
    """Buffers are in the packed file, and in `hf/buffers` again."""
    source = write_llama(tmp_path / "m")
    tensors = dict(load_file(source / "model.safetensors"))
    position = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors[position] = np.arange(8, dtype=np.float32)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    convert(source, tmp_path / "x")
    assert (tmp_path / "x" / "hf" / "buffers").is_dir()
    icp_jax.pack(tmp_path / "x", tmp_path / "p")
    icp_jax.unpack(tmp_path / "p", tmp_path / "u")
    same(tmp_path / "u", tmp_path / "x")
    assert position in open_checkpoint(tmp_path / "p").names()


def refused(capsys, *args):
    out = args[-1]
    assert main([*map(str, args)]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and not out.exists()
    assert not list(out.parent.glob(".*.partial"))
    return said


def test_what_cannot_be_packed(made, tmp_path, capsys):
    assert "packed already" in refused(capsys, "pack", made / "p", tmp_path / "o")
    shutil.copytree(made / "m", tmp_path / "m")
    (tmp_path / "m" / "packed-orbax").mkdir()
    assert "reserved name" in refused(capsys, "pack", tmp_path / "m", tmp_path / "o")
    shutil.copytree(made / "x", tmp_path / "x")
    tree = read_tree(made / "x" / "params")
    for change, part in (
        (lambda tree: tree | {"step": np.zeros(3)}, "'step' that is no tensor"),
        (lambda tree: {"embed": tree["embed"], "head": tree["head"]}, "missing leaf 'blocks"),
        (lambda tree: jax.tree.map(lambda x: x.astype(np.float64), tree), "the layout expects"),
    ):
        shutil.rmtree(tmp_path / "x" / "params")
        save_tree(tmp_path / "x" / "params", change(tree))
        assert part in refused(capsys, "pack", tmp_path / "x", tmp_path / "o")
    shutil.rmtree(tmp_path / "x" / "params")
    assert "no readable Orbax" in refused(capsys, "pack", tmp_path / "x", tmp_path / "o")
    layout = tmp_path / "x" / "hf" / "layout.json"
    told = json.loads(layout.read_text())
    layout.write_text(json.dumps({**told, "headers": {"m.pth": ""}, "entries": {}, "torch": True}))
    assert "from a .pth file" in refused(capsys, "pack", tmp_path / "x", tmp_path / "o")


def test_what_cannot_be_unpacked(made, tmp_path, capsys):
    shutil.copytree(made / "p", tmp_path / "p")
    layout = tmp_path / "p" / "packed-orbax" / "hf" / "layout.json"
    convert(write_pruned(tmp_path / "n", np.float32), tmp_path / "y")
    layout.write_bytes((tmp_path / "y" / "hf" / "layout.json").read_bytes())
    said = refused(capsys, "unpack", tmp_path / "p", tmp_path / "o")
    assert "is not the layout of the packed files" in said
    layout.write_text("{")
    assert "is not a layout" in refused(capsys, "unpack", tmp_path / "p", tmp_path / "o")
    layout.write_bytes((made / "x" / "hf" / "layout.json").read_bytes())
    data = bytearray((tmp_path / "p" / NAME).read_bytes())
    data[-1] ^= 1
    (tmp_path / "p" / NAME).write_bytes(data)
    assert "is damaged" in refused(capsys, "unpack", tmp_path / "p", tmp_path / "o")
