"""Packed folders wherever a model is used, and blocks that the device unpacks."""

import json
from contextlib import closing

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import write_llama
from packing import NAME, files, write_pruned, zeroed

import icp_jax
from converters import packed_codec as codec
from converters import packed_forms as forms
from icp_jax.cli import main
from icp_jax.generation.generate import generate
from icp_jax.streaming import unpacking
from icp_jax.streaming.source import FolderSource
from icp_jax.streaming.unpacking import Packed, cast_kernel, is_packed


def said(capsys, *args):
    capsys.readouterr()
    assert main([*map(str, args)]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_packed_folder_stands_for_the_plain_one(tmp_path, capsys):
    source, out = write_pruned(tmp_path / "m"), tmp_path / "p"
    icp_jax.pack(source, out)
    both = source, out
    plain, small = (said(capsys, "verify", m, "--source", source, "--json") for m in both)
    assert small["layers"] == plain["layers"] and small["changed"] == []
    sizes = [(source / "model.safetensors").stat().st_size, (out / NAME).stat().st_size]
    assert plain["packed"] is None
    assert [small["packed"][key] for key in ("bytes", "packed_bytes")] == sizes
    assert main(["verify", str(out)]) == 0
    assert "all checksums are right" in capsys.readouterr().out
    said(capsys, "convert", out, tmp_path / "orbax", "--json")
    said(capsys, "convert", tmp_path / "orbax", tmp_path / "b", "--json")
    icp_jax.save(icp_jax.load(out), tmp_path / "saved")
    assert files(tmp_path / "saved") == files(tmp_path / "b") == files(source)


@pytest.mark.slow
def test_packed_and_plain_give_the_same_figures(tmp_path, bundled, capsys):
    source, out = write_pruned(tmp_path / "m", shard_bytes=60_000), tmp_path / "p"
    text = tmp_path / "text.txt"
    text.write_text((bundled / "heldout.txt").read_text()[:4000])
    icp_jax.pack(source, out)
    for args in (["eval", "--data", text], ["generate", "The", "--tokens", 5]):
        command, *rest = args
        found = [said(capsys, command, m, *rest, "--json", "--quiet") for m in (source, out)]
        if command == "generate":
            found = [record["results"][0]["tokens"] for record in found]
        assert found[0] == found[1]
    prune = ["--method", "wanda", "--sparsity", "0.9", "--data", text, "--samples", 4]
    for m, to in ((source, "a"), (out, "b")):
        said(capsys, "prune", m, tmp_path / to, *prune, "--json", "--quiet")
    told = json.loads((tmp_path / "a" / "icp_run.json").read_text())["linears"]
    packed = icp_jax.pack(tmp_path / "a", tmp_path / "c")["packed"]
    assert told == {key: packed[key] for key in ("bytes", "packed_bytes")}
    for path in (tmp_path / "a").glob("*.safetensors"):
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_a_llama_with_a_head_of_its_own(tmp_path):
    source = write_llama(tmp_path / "m", tie_word_embeddings=False)
    record = icp_jax.pack(source, tmp_path / "p")
    icp_jax.unpack(tmp_path / "p", tmp_path / "u")
    assert files(tmp_path / "u") == files(source) and record["ratio"] <= 1


@pytest.mark.parametrize("pattern", [None, (2, 4), (4, 8), (1, 2)])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_the_device_unpacks_the_same_bits(pattern, dtype):
    tensor = zeroed(np.random.default_rng(0), (24, 40), 0.7, pattern).astype(dtype)
    tensor[3] = 0
    if pattern is None:
        tensor[0, :2] = -0.0
    form = codec.smallest(codec.words_of(tensor), 40)[0]
    form = f"{pattern[0]}:{pattern[1]}" if pattern else form
    parts = codec.encode(codec.words_of(tensor), form)
    parts[forms.NONZEROS] = parts[forms.NONZEROS].view(dtype)
    packed = Packed.of(parts, tensor.shape, form)
    found = np.asarray(cast_kernel(jax.device_put(packed), str(tensor.dtype)))
    assert found.tobytes() == np.ascontiguousarray(tensor.T).tobytes()


def test_blocks_move_packed(tmp_path, tokens, monkeypatch):
    """As on an accelerator: fewer bytes are sent, and every figure is the same."""
    wide = {"hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 512}
    source = write_pruned(tmp_path / "m", **wide)
    icp_jax.pack(source, tmp_path / "p")
    plain = icp_jax.evaluate(source, tokens)
    key = jax.random.key(0)
    with closing(FolderSource(source)) as model:
        written = generate(model, tokens[:2, :8], key, max_new_tokens=2)
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(model.block(1)))
    monkeypatch.setattr(unpacking, "unpacks", lambda: True)
    with closing(FolderSource(tmp_path / "p")) as model:
        moved = unpacking.to_move(model, 1)
        assert sum(map(is_packed, jax.tree.leaves(moved, is_leaf=is_packed))) == 6
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(moved)) < 0.29 * whole
        assert icp_jax.evaluate(model, tokens) == plain
        found = generate(model, tokens[:2, :8], key, max_new_tokens=2)
        np.testing.assert_array_equal(found, written)


@pytest.mark.parametrize("form", ["bitmask", "2:4", "4:8"])
def test_unpacking_lowers_for_cuda(form):
    tensor = zeroed(np.random.default_rng(0), (24, 40), 0, (1, 8)).astype(np.float16)
    parts = codec.encode(codec.words_of(tensor), form)
    packed = Packed.of(parts, tensor.shape, form)
    lowered = cast_kernel.trace(packed, "float32").lower(lowering_platforms=("cuda",))
    assert "24x40" in lowered.as_text()
