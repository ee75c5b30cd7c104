"""`pack` and `unpack`: the same bytes, and as small as promised."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import packed_reader
import pytest
from conftest import write_opt
from packing import NAME, files, write_pruned

import icp_jax
from converters.files import open_checkpoint
from icp_jax.cli import main


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
    "deflated": {"sparsity": 0.9, "ffn_dim": 256},
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


MASK_BITS = {0.5: 1, 0.7: 1, 0.8: 0.73, 0.9: 0.49}  # of each weight; less than 1 if deflated


@pytest.mark.parametrize("sparsity", MASK_BITS)
def test_sizes(tmp_path, capsys, sparsity):
    """Within 2 % of 1 + 16(1 - s) bits a weight, or of less, and so of the whole file."""
    source = write_pruned(
        tmp_path / "m", sparsity=sparsity, hidden_size=128, word_embed_proj_dim=128, ffn_dim=512
    )
    capsys.readouterr()
    assert main(["pack", str(source), str(tmp_path / "p"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["layers"]) == 18
    for layer in record["layers"]:
        formula = MASK_BITS[sparsity] + 16 * (1 - layer["sparsity"])
        assert layer["bits_per_weight"] == pytest.approx(formula, rel=0.02)
        assert layer["zeros"] == pytest.approx(sparsity * layer["size"], abs=1)
    linears = record["packed"]
    formula = MASK_BITS[sparsity] + 16 * (1 - sparsity)
    assert linears["ratio"] == pytest.approx(16 / formula, rel=0.02)
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


# ---------------------------------------------------------------- integers


@pytest.mark.parametrize("bits,group", [(4, 32), pytest.param(8, 64, marks=pytest.mark.slow)])
def test_a_quantized_export_is_packed_exactly(tmp_path, bits, group, tokens):
    wide = {"num_hidden_layers": 1, "hidden_size": 64, "word_embed_proj_dim": 64}
    model = icp_jax.load(write_opt(tmp_path / "d", **wide))
    quant = icp_jax.QuantConfig(bits=bits, group=group)
    config = icp_jax.PruneConfig(method="magnitude", sparsity=0.7)
    pruned, _ = icp_jax.prune(model, tokens, config, quant=quant)
    source = icp_jax.save(pruned, tmp_path / "m")
    record = icp_jax.pack(source, tmp_path / "p", bits=bits)
    assert not record["rounded"] and len(record["layers"]) == 6
    assert all(layer["form"].startswith(f"int{bits}:") for layer in record["layers"])
    for layer in record["layers"]:
        scales = 24 / int(layer["form"].split(":")[1])
        bits_of = 1 + bits * (1 - layer["sparsity"]) + scales
        assert layer["bits_per_weight"] == pytest.approx(bits_of, rel=0.02)
    icp_jax.unpack(tmp_path / "p", tmp_path / "u")
    assert files(tmp_path / "u") == files(source)
    for path in (tmp_path / "p").glob("*.safetensors"):
        assert packed_reader.read(path) == (source / "model.safetensors").read_bytes()


def test_other_weights_are_rounded_and_it_is_said(tmp_path, capsys):
    source = write_pruned(tmp_path / "m", sparsity=0.7)
    assert main(["pack", str(source), str(tmp_path / "p"), "--bits", "8"]) == 0
    assert "weights were rounded" in capsys.readouterr().out
    plain, rounded = (icp_jax.verify(m) for m in (source, tmp_path / "p"))
    assert rounded["sparsity"] >= plain["sparsity"] and not rounded["not_finite"]
    assert main(["unpack", str(tmp_path / "p"), str(tmp_path / "u")]) == 0
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "u" / name).read_bytes() == (source / name).read_bytes()
    old, new = (icp_jax.load(m).params for m in (source, tmp_path / "u"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.005), old, new)
    again = icp_jax.pack(tmp_path / "u", tmp_path / "q", bits=8)
    assert again["packed_bytes"] <= (tmp_path / "p" / NAME).stat().st_size + 4096
    capsys.readouterr()
    for args in (["--bits", "3"], ["--bits", "4", "--format", "macko"]):
        assert main(["pack", str(source), str(tmp_path / "x"), *args]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(icp_jax.InputError, match="bits must be 4 or 8"):
        icp_jax.pack(source, tmp_path / "x", bits=3)


def test_what_is_not_finite_stays_as_it_is(tmp_path):
    source = write_pruned(tmp_path / "m")
    name = "model.decoder.layers.1.fc1.weight"

    def change(tensors):
        tensors[name][0, :2] = np.nan, np.inf

    rewritten(source, change)
    record = icp_jax.pack(source, tmp_path / "p", bits=4)
    forms = {layer["name"]: layer["form"] for layer in record["layers"]}
    assert forms.pop(name) == "bitmask" and set(forms.values()) == {"int4:32", "int4:128"}
    assert icp_jax.verify(tmp_path / "p")["not_finite"] == [name]
