"""`icp-jax distill`: a pruned folder tuned to predict what the dense one does."""

import json

import numpy as np
import pytest
from conftest import write_llama, write_opt
from runs import error, helpful

import icp_jax
from icp_jax.cli import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A dense model, the same pruned, and rows of token ids."""
    place = tmp_path_factory.mktemp("distill")
    write_opt(place / "dense", num_hidden_layers=2, vocab_size=97)
    np.save(place / "ids.npy", np.random.default_rng(1).integers(3, 97, (12, 16)).astype(np.int32))
    options = ["--method", "magnitude", "--sparsity", "0.5", "--data", str(place / "ids.npy")]
    assert main(["prune", str(place / "dense"), str(place / "pruned"), *options]) == 0
    return place


@pytest.fixture
def place(folders, tmp_path, monkeypatch):
    for name in ("dense", "pruned", "ids.npy"):
        (tmp_path / name).symlink_to(folders / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMAND = ["distill", "pruned", "dense", "--out", "out", "--data", "ids.npy", "--lr", "3e-3"]


def test_predictions_come_nearer_and_zeros_stay(place, capsys):
    assert main([*COMMAND, "--epochs", "2", "--batch", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    found = record["global_pass"]
    assert found["best"] > 0 and found["kl"][found["best"]] == min(found["kl"]) < found["kl"][0]
    assert (found["windows"], found["heldout_windows"]) == (11, 1)
    assert record["sparsity"] == pytest.approx(0.5, abs=1e-4) and len(record["blocks"]) == 2
    kept = json.loads((place / "out" / "icp_run.json").read_text())
    assert kept["global_pass"] == found and "icp-jax distill pruned dense" in found["command"]
    pruned, tuned = (icp_jax.load(name) for name in ("pruned", "out"))
    dense, windows = icp_jax.load("dense"), np.load("ids.npy")[-1:]
    for t in range(2):
        for spec in dense.family.linears:
            old, new = (m.block(t)[spec.name]["kernel"] for m in (pruned, tuned))
            assert old.dtype == new.dtype and not np.any(new[old == 0])
    kl = [icp_jax.evaluate(model, windows, against=dense).kl for model in (pruned, tuned)]
    assert kl[1] < kl[0]
    assert sorted(p.name for p in place.iterdir()) == ["dense", "ids.npy", "out", "pruned"]


def test_a_rate_that_does_harm_leaves_the_weights(place, capsys):
    assert main([*COMMAND[:-1], "100", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "the given weights: no epoch was better" in said and "as given" in said
    files = [place / name / "model.safetensors" for name in ("pruned", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def quantized(place):
    write_opt(place / "q", num_hidden_layers=2, vocab_size=97)
    config = {"quant": {"bits": 4}, "prune": {"method": "icp"}}
    (place / "q" / "icp_run.json").write_text(json.dumps({"config": config, "blocks": []}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--epochs": "0"}, "epochs must be at least 1"),
        ({"--lr": "0"}, "lr must be a positive number"),
        ({"--batch": "0"}, "batch must be at least 1"),
        ({"--samples": "1"}, "one window leaves none to hold out"),
        ({"dense": "llama"}, "give the model that was pruned"),
        ({"pruned": "q"}, "quantized to 4 bits"),
        ({"pruned": "nowhere"}, "nowhere"),
        ({"out": "pruned"}, "exists already"),
    ],
)
def test_what_it_cannot_do_is_one_line(place, changes, expected, capsys):
    args = [changes.get(arg, arg) for arg in COMMAND[: -2 if "--lr" in changes else None]]
    args += [word for name, value in changes.items() if name[0] == "-" for word in (name, value)]
    if "llama" in args:
        write_llama(place / "llama")
    if "q" in args:
        quantized(place)
    before = {p.name for p in place.iterdir()}
    assert main([*args, "--quiet"]) == 2
    line = error(capsys)
    assert expected in line and helpful(line, args)
    assert {p.name for p in place.iterdir()} == before
