"""The folder beside the output: what is a run's, what is not, and what is kept of either."""

import json

import numpy as np
import pytest
from conftest import write_opt
from runs import ARGUMENTS, error, same
from safetensors.numpy import load_file, save_file

from icp_jax.cli import main
from icp_jax.errors import InputError
from icp_jax.runs import work_folder


def notes(work):
    work.mkdir()
    (work / "notes.txt").write_text("mine")


def blocks_alone(work):
    (work / "block-00000").mkdir(parents=True)
    (work / "block-00000.json").write_text("{}")


def a_strange_fingerprint(work):
    work.mkdir()
    (work / "fingerprint.json").write_text('{"whorl": 1}')


def a_linked_lock(work):
    work.mkdir()
    (work.parent / "victim").write_text("mine")
    (work / "lock").symlink_to(work.parent / "victim")


def a_link(work):
    (work.parent / "elsewhere").mkdir()
    work.symlink_to(work.parent / "elsewhere")


def a_file(work):
    work.write_text("mine")


def nothing(work):
    work.mkdir()


def a_folder_called_lock(work):
    (work / "lock").mkdir(parents=True)


STRANGE = [notes, blocks_alone, a_strange_fingerprint, a_linked_lock, a_link, a_file, nothing]
STRANGE += [a_folder_called_lock]


def state(folder):
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize("make", STRANGE)
def test_what_is_not_a_runs_is_left_alone(place, capsys, make, resume):
    make(place / "work" / ".out.partial")
    before = state(place / "work")
    assert main([*ARGUMENTS, *resume]) == 2
    said = error(capsys)
    assert ".out.partial is not the work folder of a run: it " in said and "move it away" in said
    assert state(place / "work") == before


def tick_that(act, block, phase):
    def tick(now, now_phase, done, total, loss):
        if (now, now_phase) == (block, phase):
            act()

    return lambda err, label: tick


def stop():
    raise KeyboardInterrupt


@pytest.mark.parametrize("phase", ["dense", "export"])
def test_what_the_user_puts_into_a_runs_folder_stays(place, capsys, monkeypatch, phase):
    """Whether the run is cut off, or ends well."""
    work = place / "work" / ".out.partial"

    def act():
        (work / "notes.txt").write_text("mine")
        if phase == "dense":
            stop()

    monkeypatch.setattr("icp_jax.cli.progress._lines", tick_that(act, 3, phase))
    assert main(ARGUMENTS) == (130 if phase == "dense" else 0)
    assert (work / "notes.txt").read_text() == "mine"
    if phase == "export":
        assert [path.name for path in work.iterdir()] == ["notes.txt"]
        return
    capsys.readouterr()
    before = state(work)
    assert main([*ARGUMENTS, "--resume"]) == 2
    assert "it has 'notes.txt', which no run writes" in error(capsys)
    assert state(work) == before
    (work / "notes.txt").unlink()
    monkeypatch.undo()


def test_a_removal_that_is_cut_off_leaves_a_runs_folder(place, undisturbed, monkeypatch):
    """The next run takes it over, and begins anew."""
    real = work_folder.shutil.rmtree

    def rmtree(path, **options):
        if path.name.startswith("block-"):
            raise KeyboardInterrupt
        real(path, **options)

    monkeypatch.setattr(work_folder.shutil, "rmtree", rmtree)
    assert main(ARGUMENTS) == 130
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert (place / "work" / ".out.partial" / "fingerprint.json").exists()
    (place / "work" / "out").rename(place / "moved")
    assert main(ARGUMENTS) == 0
    same(place, undisturbed)


def spoilt(place):
    """A model whose second block gives infinity."""
    (place / "model").unlink()
    write_opt(place / "model", np.float32, num_hidden_layers=4)
    path = place / "model" / "model.safetensors"
    tensors = dict(load_file(path))
    tensors["model.decoder.layers.1.fc2.weight"][:] = 3e38
    save_file(tensors, path, {"format": "pt"})


def test_bad_input_that_shows_late_keeps_what_was_finished(place, capsys):
    spoilt(place)
    assert main(ARGUMENTS) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert "block 1 returns values that are not finite" in last
    assert last.endswith("; stopped after block 0; continue with --resume")
    work = place / "work" / ".out.partial"
    assert {path.name for path in work.iterdir()} == {
        "lock", "fingerprint.json", "block-00000", "block-00000.json"
    }  # fmt: skip
    assert json.loads((work / "block-00000.json").read_text())["report"]["block"] == 0


@pytest.mark.parametrize("phase", ["prune", "check"])
def test_any_late_input_error_keeps_what_was_finished(place, undisturbed, monkeypatch, phase):
    def act():
        raise InputError("more than a tenth of the layers needed a remedy")

    monkeypatch.setattr("icp_jax.cli.progress._lines", tick_that(act, 3, phase))
    assert main(ARGUMENTS) == 2
    assert (place / "work" / ".out.partial" / "block-00002.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert main([*ARGUMENTS, "--resume"]) == 0
    same(place, undisturbed)
