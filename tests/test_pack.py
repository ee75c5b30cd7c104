"""`pack` and `unpack`: the same bytes, as small as promised, and usable as the folder is."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import packed_reader
import pytest
from conftest import write_llama
from packing import files, signed, write_pruned, zeroed

import icp_jax
from converters import packed_codec as codec
from converters.files import open_checkpoint
from converters.packed_files import PackedReader, digest
from converters.rules import ConversionError
from icp_jax import InputError
from icp_jax.cli import main
from icp_jax.generation.generate import generate
from icp_jax.streaming import unpacking
from icp_jax.streaming.source import FolderSource
from icp_jax.streaming.unpacking import Packed, cast_kernel, is_packed

NAME = "model.packed.safetensors"


def rewritten(folder, change):
    """Change the tensors of a folder in one file, by the safetensors package."""
    from safetensors.numpy import load_file, save_file

    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt", "ä": "ü"})


CASES = {
    "float16": {},
    "bfloat16": {"dtype": ml_dtypes.bfloat16},
    "float32": {"dtype": np.float32},
    "float64": {"dtype": np.float64},
    "shards": {"shard_bytes": 12_000},
    "2:4": {"pattern": (2, 4)},
    "4:8": {"pattern": (4, 8), "dtype": ml_dtypes.bfloat16},
    "dense": {"sparsity": 0},
}


@pytest.mark.parametrize("case", CASES)
def test_unpack_gives_the_same_files(tmp_path, case):
    source = write_pruned(tmp_path / "m", **CASES[case])
    (source / "empty").mkdir()
    (source / "sub").mkdir()
    (source / "sub" / "report.html").write_bytes(b"\x00\xff")
    (source / "icp_run.json").write_text("{}")
    if case == "shards":
        assert len(list(source.glob("*.safetensors"))) >= 8
    record = icp_jax.pack(source, tmp_path / "p")
    icp_jax.unpack(tmp_path / "p", tmp_path / "u")
    assert files(tmp_path / "u") == files(source)
    assert not list((tmp_path / "p").glob("[!.]*[0-9l].safetensors"))
    assert record["packed_bytes"] == sum(
        p.stat().st_size for p in (tmp_path / "p").glob(f"*{NAME[5:]}")
    )
    assert (record["layers"] == []) == (case == "dense")


def test_odd_bits_and_the_header_survive(tmp_path):
    source = write_pruned(tmp_path / "m")

    def change(tensors):
        w = tensors["model.decoder.layers.1.fc1.weight"]
        w.reshape(-1)[:6].view(np.uint16)[:] = [0x8000, 0x7C01, 0xFE55, 0, 0x8001, 0xFC00]
        tensors["counts"] = np.arange(7, dtype=np.int64)
        tensors["none"] = np.zeros((0, 4), np.float16)
        tensors["bits"] = np.zeros((8, 8), np.uint8)
        tensors["one"] = np.array(0, np.float32)

    rewritten(source, change)
    icp_jax.pack(source, tmp_path / "p")
    icp_jax.unpack(tmp_path / "p", tmp_path / "u")
    assert files(tmp_path / "u") == files(source)


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.8, 0.9])
def test_sizes(tmp_path, capsys, sparsity):
    """Within 2 % of 1 + 16(1 - s) bits a weight, and so of the whole file."""
    source = write_pruned(
        tmp_path / "m", sparsity=sparsity, hidden_size=128, word_embed_proj_dim=128, ffn_dim=512
    )
    capsys.readouterr()
    assert main(["pack", str(source), str(tmp_path / "p"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["layers"]) == 18
    for layer in record["layers"]:
        assert layer["bits_per_weight"] == pytest.approx(1 + 16 * (1 - layer["sparsity"]), rel=0.02)
        assert layer["zeros"] == pytest.approx(sparsity * layer["size"], abs=1)
    linears = record["packed"]
    assert linears["ratio"] == pytest.approx(16 / (1 + 16 * (1 - sparsity)), rel=0.02)
    assert linears["packed_bytes"] == sum(layer["packed_bytes"] for layer in record["layers"])
    saved = linears["bytes"] - linears["packed_bytes"]
    assert record["bytes"] == (source / "model.safetensors").stat().st_size
    assert record["packed_bytes"] == (tmp_path / "p" / NAME).stat().st_size
    described = record["packed_bytes"] - (record["bytes"] - saved)
    assert 0 < described < 400 * 51  # bytes of names and checksums, for 51 tensors
    assert record["ratio"] == record["bytes"] / record["packed_bytes"]
    if sparsity == 0.8:
        assert linears["packed_bytes"] <= 0.29 * linears["bytes"]


def test_the_sizes_are_printed(tmp_path, capsys):
    source = write_pruned(tmp_path / "m", pattern=(2, 4))
    capsys.readouterr()
    assert main(["pack", str(source), str(tmp_path / "p")]) == 0
    out = capsys.readouterr().out
    assert "2:4" in out and "1.8" in out and str(tmp_path / "p") in out.replace("\n", "")
    assert main(["unpack", str(tmp_path / "p"), str(tmp_path / "u")]) == 0
    assert f"{(source / 'model.safetensors').stat().st_size} bytes" in capsys.readouterr().out


def test_tensors_are_aligned_and_readable_by_the_package(tmp_path):
    from safetensors.numpy import load_file

    source = write_pruned(tmp_path / "m", dtype=np.float32)
    icp_jax.pack(source, tmp_path / "p")
    held = load_file(tmp_path / "p" / NAME)
    assert (
        held["packed:header"].tobytes()
        == (source / "model.safetensors").read_bytes()[: len(held["packed:header"])]
    )
    file = open_checkpoint(tmp_path / "p").packed["model.safetensors"]
    parts = [part for stored in file.stored.values() for part in stored.parts.values()]
    assert all(part.start % part.dtype.itemsize == 0 for part in parts)


@pytest.mark.parametrize("case", CASES)
def test_a_reader_written_from_the_page_reads_it(tmp_path, case):
    source = write_pruned(tmp_path / "m", **CASES[case])
    icp_jax.pack(source, tmp_path / "p")
    for path in source.glob("*.safetensors"):
        packed = tmp_path / "p" / path.name.replace(".safetensors", NAME[5:])
        assert packed_reader.read(packed) == path.read_bytes()
    lines = Path(packed_reader.__file__).read_text().splitlines()
    assert len(lines) <= 60 and not any("icp_jax import" in x or "converters" in x for x in lines)


# ---------------------------------------------------------------- bad input


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    place = tmp_path_factory.mktemp("packed")
    write_pruned(place / "m")
    icp_jax.pack(place / "m", place / "p")
    return place


@pytest.fixture
def copy(packed, tmp_path):
    shutil.copytree(packed / "p", tmp_path / "p")
    return tmp_path / "p"


def refused(folder, part):
    """Every use is refused in one line."""
    with pytest.raises((ConversionError, InputError), match=part) as error:
        icp_jax.unpack(folder, folder.parent / "u")
    assert "\n" not in str(error.value) and not (folder.parent / "u").exists()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["p"]
    with pytest.raises((ConversionError, InputError), match=part):
        icp_jax.load(folder)


@pytest.mark.parametrize("length", [0, 5, 100, 3000, 20_000, -1])
def test_a_truncated_file_is_refused(copy, length):
    data = (copy / NAME).read_bytes()
    (copy / NAME).write_bytes(data[:length])
    refused(copy, "truncated|is empty")


def test_a_longer_file_is_refused(copy):
    with (copy / NAME).open("ab") as file:
        file.write(b"\0")
    refused(copy, "longer than its header says")


def test_a_file_that_pack_did_not_write_is_refused(packed, copy):
    shutil.copy(packed / "m" / "model.safetensors", copy / NAME)
    refused(copy, "was not written by icp-jax pack")


def redescribed(copy, change):
    """The file with a description that is changed, its checksum right."""
    raw = (copy / NAME).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    told = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["icp_jax.packed"])
    told = change(told) or told
    (copy / NAME).write_bytes(signed(raw, told, digest))


FC1 = "model.decoder.layers.1.fc1.weight"
DESCRIPTIONS = {
    "version": (lambda told: told.update(version=2), "version 2 of the format"),
    "no version": (lambda told: told.pop("version") and None, "not JSON"),
    "a list": (lambda told: [told], "not JSON"),
    "form": (lambda told: told["tensors"][FC1].update(form="3:5"), "unknown form"),
    "pattern": (lambda told: told["tensors"][FC1].update(form="2:4"), "contradicts"),
    "plain": (lambda told: told["tensors"][FC1].update(form="plain"), "contradicts"),
    "missing": (lambda told: told["tensors"].pop(FC1) and None, "contradicts"),
    "no digests": (lambda told: told["tensors"][FC1].update(sha256={}), "contradicts"),
    "digest": (lambda told: told["tensors"][FC1]["sha256"].update(bitmask="0"), "checksum"),
    "no header": (lambda told: told.update(header=3), "checksum"),
    "tensors": (lambda told: told.update(tensors=[]), "contradicts"),
    "a number": (lambda told: told["tensors"].update({FC1: 3}), "contradicts"),
    "form is no text": (lambda told: told["tensors"][FC1].update(form=[]), "contradicts|form"),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_a_description_that_is_wrong_is_refused(copy, case):
    change, part = DESCRIPTIONS[case]
    redescribed(copy, change)
    refused(copy, part)


def test_a_missing_shard_is_refused(tmp_path):
    source = write_pruned(tmp_path / "m", shard_bytes=60_000)
    icp_jax.pack(source, tmp_path / "p")
    shutil.rmtree(source)
    sorted((tmp_path / "p").glob("*.packed.safetensors"))[1].unlink()
    refused(tmp_path / "p", "missing shard")


def test_what_cannot_be_packed(tmp_path, packed, copy, capsys):
    for args, part in (
        (["pack", str(copy), str(tmp_path / "o")], "packed already"),
        (["unpack", str(packed / "m"), str(tmp_path / "o")], "is not packed"),
        (["pack", str(packed / "m"), str(copy)], "exists already"),
        (["pack", str(tmp_path / "nothing"), str(tmp_path / "o")], "no such folder"),
    ):
        assert main(args) == 2
        assert part in capsys.readouterr().err
    assert main(["convert", str(packed / "m"), str(tmp_path / "orbax")]) == 0
    capsys.readouterr()
    assert main(["pack", str(tmp_path / "orbax"), str(tmp_path / "o")]) == 2
    assert "Orbax checkpoint, which is compressed already" in capsys.readouterr().err
    shutil.copy(packed / "p" / NAME, tmp_path / "p" / NAME)
    shutil.copy(packed / "m" / "model.safetensors", copy)
    assert main(["pack", str(copy), str(tmp_path / "o")]) == 2
    assert "reserved name" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_flipped_bit_is_refused(packed, tmp_path):
    """300 places of the file, each in turn: an error, or tensors that are the same."""
    data = bytearray((packed / "p" / NAME).read_bytes())
    (tmp_path / "config.json").write_bytes((packed / "m" / "config.json").read_bytes())
    reader = open_checkpoint(packed / "m")
    want = {name: reader.read(name).tobytes() for name in reader.names()}
    rng, refusals = np.random.default_rng(0), 0
    header = 8 + int.from_bytes(data[:8], "little")
    places = [*rng.integers(0, header, 100), *rng.integers(0, len(data), 200)]
    for place in map(int, places):
        bit = 1 << int(rng.integers(8))
        data[place] ^= bit
        (tmp_path / NAME).write_bytes(data)
        try:
            found = PackedReader({"model.safetensors": tmp_path / NAME}, None)
            assert {name: found.read(name).tobytes() for name in found.names()} == want
        except ConversionError as error:
            assert "\n" not in str(error)
            refusals += 1
        data[place] ^= bit
    assert refusals > 290


# ---------------------------------------------------------------- in use


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
    for path in (tmp_path / "a").glob("*.safetensors"):
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_a_llama_with_a_head_of_its_own(tmp_path):
    source = write_llama(tmp_path / "m", tie_word_embeddings=False)
    record = icp_jax.pack(source, tmp_path / "p")
    icp_jax.unpack(tmp_path / "p", tmp_path / "u")
    assert files(tmp_path / "u") == files(source) and record["ratio"] <= 1


# ---------------------------------------------------------------- on the device


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
    parts[codec.NONZEROS] = parts[codec.NONZEROS].view(dtype)
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
