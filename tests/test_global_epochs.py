"""`icp-jax prune --global-epochs`: the global pass after the last block, and its resume."""

import json
import shutil

import numpy as np
import pytest
from conftest import write_opt
from runs import error, helpful
from vision import small_sam

from icp_jax.cli import main
from icp_jax.runs.epochs import EpochCheckpoints
from icp_jax.streaming.distill_steps import Distillation

GLOBAL = ["prune", "dense", "work/out", "--method", "magnitude", "--sparsity", "0.5"]
GLOBAL += ["--data", "ids.npy", "--global-batch", "2"]
TWO = [*GLOBAL, "--global-epochs", "2", "--global-lr", "3e-3", "--quiet"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_opt(tmp_path / "dense", num_hidden_layers=2, vocab_size=97)
    windows = np.random.default_rng(1).integers(3, 97, (12, 16)).astype(np.int32)
    np.save(tmp_path / "ids.npy", windows)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder):
    record = json.loads((folder / "icp_run.json").read_text())
    return (folder / "model.safetensors").read_bytes(), record["global_pass"]


@pytest.mark.slow
def test_it_goes_on_after_the_last_epoch(place, monkeypatch, capsys):
    assert main([*TWO, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    whole = contents(place / "work" / "out")
    assert said["global_pass"] == whole[1] and len(whole[1]["kl"]) == 3
    assert min(whole[1]["kl"]) == whole[1]["kl"][whole[1]["best"]] < whole[1]["kl"][0]
    assert "KL divergence, in nats" in (place / "work" / "out" / "report.html").read_text()
    assert main(["verify", "work/out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sparsity"] == pytest.approx(0.5, abs=1e-4)
    shutil.rmtree(place / "work" / "out")

    real = Distillation.epoch
    epochs = []

    def cut_off(self, epoch):
        epochs.append(epoch)
        if epoch == 1 and len(epochs) == 2:
            raise KeyboardInterrupt
        return real(self, epoch)

    monkeypatch.setattr(Distillation, "epoch", cut_off)
    assert main(TWO) == 130
    assert "after epoch 1 of the global pass; continue with --resume" in error(capsys)
    kept = {p.name for p in (place / "work" / ".out.partial").iterdir()}
    assert {"epoch-00001", "epoch-00001.json", "block-00001"} < kept
    assert main([*TWO, "--resume"]) == 0
    assert "resuming after epoch 1 of the global pass" in capsys.readouterr().err
    assert epochs == [0, 1, 1]
    assert contents(place / "work" / "out") == whole
    assert [p.name for p in (place / "work").iterdir()] == ["out"]


@pytest.mark.slow
def test_a_damaged_epoch_starts_the_pass_again(place, monkeypatch, capsys):
    def stopped(self, found):
        real(self, found)
        raise KeyboardInterrupt

    real = EpochCheckpoints.write
    monkeypatch.setattr(EpochCheckpoints, "write", stopped)
    assert main(TWO) == 130
    monkeypatch.undo()
    monkeypatch.chdir(place)
    seal = place / "work" / ".out.partial" / "epoch-00001.json"
    seal.write_text(seal.read_text().replace('"sha256": "', '"sha256": "0'))
    assert main([*TWO, "--resume"]) == 0
    err = capsys.readouterr().err
    assert "epoch 1 is damaged: the global pass starts again" in err
    assert len(contents(place / "work" / "out")[1]["kl"]) == 3


def test_what_it_does_not_go_with_is_one_line(place, capsys):
    for more, expected in (
        (["--global-epochs", "1", "--bits", "4"], "off their grid"),
        ([], "--global-batch needs --global-epochs: set it, such as 1"),
        (["--global-epochs", "1", "--samples", "1"], "one window leaves none to hold out"),
    ):
        assert main([*GLOBAL, *more, "--quiet"]) == 2
        line = error(capsys)
        assert expected in line and helpful(line)
    assert not any((place / "work").iterdir())


def test_images_are_refused(tmp_path, capsys):
    small_sam.write_sam(tmp_path / "sam")
    assert main(["plan", str(tmp_path / "sam"), "--global-epochs", "1"]) == 2
    assert "the global pass is for language models" in error(capsys)
