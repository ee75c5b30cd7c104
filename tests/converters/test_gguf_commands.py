"""A `.gguf` file where a command or a call takes a model."""

import json

import gguf_oracle as oracle
import numpy as np
import pytest
from conftest import LLAMA
from runs import error

import icp_jax
from icp_jax.cli import main
from icp_jax.runs.convert import convert


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model in parts, its conversion, and token ids and a text to prune it with."""
    place = tmp_path_factory.mktemp("gguf")
    state = oracle.random_state(LLAMA)
    oracle.write_gguf(place / "model.gguf", LLAMA, state, kind="F16", split_max_tensors=20)
    convert(first(place), place / "folder")
    np.save(place / "ids.npy", np.random.default_rng(0).integers(3, 97, (6, 16)))
    (place / "text.txt").write_text("Itwasadarkandstormynight;therainfellintorrents." * 20)
    return place


def first(place):
    return sorted(place.glob("model-*.gguf"))[0]


def prune(model, out, *more, data="ids.npy"):
    args = ["prune", str(model), str(out), "--data", str(data), "--seq-len", "16", "--quiet"]
    return main([*args, "--sparsity", "0.5", "--samples", "4", "--method", "wanda", *more])


def test_pruned_as_its_conversion_is(place, tmp_path, capsys):
    """The export is a Hugging Face folder with config and tokenizer, bit by bit the same."""
    outs = [tmp_path / name for name in ("one", "two")]
    for model, out in zip((first(place), place / "folder"), outs, strict=True):
        assert prune(model, out, data=place / "text.txt") == 0
    files = [{p.name: p.read_bytes() for p in out.iterdir()} for out in outs]
    records = [json.loads(found.pop("icp_run.json")) for found in files]
    assert all(found.pop("report.html") for found in files)  # it has the times
    assert files[0] == files[1] and "tokenizer.json" in files[0]
    assert records[0]["sparsity"] == records[1]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    capsys.readouterr()
    assert main(["verify", str(outs[0]), "--source", str(first(place)), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["missing"] == facts["reshaped"] == facts["added"] == []
    assert len(facts["changed"]) >= 21 and "model.norm.weight" in facts["unchanged"]


def test_evaluated_as_its_conversion_is(place, capsys):
    printed = []
    for model in (first(place), place / "folder"):
        args = ["eval", str(model), "--data", str(place / "text.txt"), "--seq-len", "16"]
        assert main([*args, "--json", "--quiet"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_planned(place, capsys):
    args = ["--method", "wanda", "--samples", "4", "--seq-len", "16", "--json"]
    assert main(["plan", str(first(place)), *args]) == 0
    phases = json.loads(capsys.readouterr().out)["phases"]
    assert {"dense", "prune"} <= {phase["name"] for phase in phases}


def test_loaded_and_saved(place, tmp_path):
    model = icp_jax.load(first(place))
    tokens = icp_jax.calibrate(model, place / "text.txt", samples=2, seq_len=16)
    want = icp_jax.load(place / "folder").logits(tokens)
    np.testing.assert_array_equal(model.logits(tokens), want)
    icp_jax.save(model, tmp_path / "out")
    for path in (place / "folder").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_run_goes_on_only_with_the_same_file(place, tmp_path, capsys, monkeypatch):
    """The fingerprint hashes every part of the file."""
    model = tmp_path / "model.gguf"
    oracle.write_gguf(model, LLAMA, oracle.random_state(LLAMA), kind="F16")
    from icp_jax.runs import finish

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish, "FolderSink", stop)
        assert prune(model, tmp_path / "out", data=place / "ids.npy") == 130
    whole = model.read_bytes()
    model.write_bytes(whole[:-2] + b"\0\1")
    capsys.readouterr()
    assert prune(model, tmp_path / "out", "--resume", data=place / "ids.npy") == 2
    assert "source model.gguf changed" in error(capsys)
    model.write_bytes(whole)
    assert prune(model, tmp_path / "out", "--resume", data=place / "ids.npy") == 0
