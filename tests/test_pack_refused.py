"""Packed files that are damaged, foreign or contradict themselves: one line, no tensor."""

import shutil

import numpy as np
import pytest
from packing import NAME, files, redescribed, write_pruned

import icp_jax
from converters.files import open_checkpoint
from converters.packed_reader import PackedReader
from converters.rules import ConversionError
from icp_jax import InputError
from icp_jax.cli import main


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


FC1, BIAS = (f"model.decoder.layers.1.fc1.{kind}" for kind in ("weight", "bias"))
DESCRIPTIONS = {
    "version": (lambda told: told.update(version=3), "version 3 of the format"),
    "no version": (lambda told: told.pop("version") and None, "not JSON"),
    "a list": (lambda told: [told], "not JSON"),
    "form": (lambda told: told["tensors"][FC1].update(form="3:5"), "unknown form"),
    "pattern": (lambda told: told["tensors"][FC1].update(form="2:4"), "contradicts"),
    "of a vector": (lambda told: told["tensors"][BIAS].update(form="2:4"), "contradicts"),
    "plain": (lambda told: told["tensors"][FC1].update(form="plain"), "contradicts"),
    "missing": (lambda told: told["tensors"].pop(FC1) and None, "contradicts"),
    "no digests": (lambda told: told["tensors"][FC1].update(sha256={}), "contradicts"),
    "digest": (lambda told: told["tensors"][FC1]["sha256"].update(nonzeros="0"), "checksum"),
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
    shutil.copy(packed / "p" / NAME, tmp_path / "p" / NAME)
    shutil.copy(packed / "m" / "model.safetensors", copy)
    assert main(["pack", str(copy), str(tmp_path / "o")]) == 2
    assert "reserved name" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_links_are_followed_and_broken_ones_refused(packed, tmp_path):
    (tmp_path / "m").mkdir()
    for path in (packed / "m").iterdir():
        (tmp_path / "m" / path.name).symlink_to(path)
    icp_jax.pack(tmp_path / "m", tmp_path / "p")
    assert files(tmp_path / "p") == files(packed / "p")
    (tmp_path / "m" / "gone.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(InputError, match=r"gone.txt cannot be copied"):
        icp_jax.pack(tmp_path / "m", tmp_path / "o")
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
