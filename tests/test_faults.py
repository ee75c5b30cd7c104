"""Faults, provoked as truly as a test can: each is noticed, and going on gives the same bytes."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_opt
from test_resume import ARGUMENTS, BLOCKS, contents

from icp_jax.cli import main

LIMIT = 6_000  # bytes a file: less than a large kernel takes, more than a record


@pytest.fixture(scope="module")
def model(tmp_path_factory, bundled):
    """A model and a text, and the output of a run that nothing disturbs."""
    place = tmp_path_factory.mktemp("faults")
    write_opt(place / "model", num_hidden_layers=BLOCKS, hidden_size=64, word_embed_proj_dim=64)
    (place / "text.txt").write_text((bundled / "calibration.txt").read_text()[:6000])
    (place / "work").mkdir()
    with contextlib.chdir(place):
        assert main(ARGUMENTS) == 0
    (place / "work" / "out").rename(place / "whole")
    return place


@pytest.fixture
def place(model, tmp_path, monkeypatch):
    """The same model with an output folder of its own; the tests run in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "text.txt"):
        (tmp_path / name).symlink_to(model / name)
    (tmp_path / "work").mkdir()
    return tmp_path


@pytest.fixture
def at(monkeypatch):
    """at(block, phase, act): runs of the command line do `act` at that tick, once."""

    def arrange(block, phase, act):
        todo = [act]

        def tick(now, now_phase, done, total, loss):
            if (now, now_phase) == (block, phase) and todo:
                todo.pop()()

        monkeypatch.setattr("icp_jax.report.console._lines", lambda err, label: tick)

    return arrange


def interrupt():
    raise KeyboardInterrupt


def error(capsys):
    """The one line of a run's standard error."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def same(place, model):
    assert [p.name for p in (place / "work").iterdir()] == ["out"]
    assert contents(place / "work" / "out") == contents(model / "whole")


# ---------------------------------------------------------------- the disk


@pytest.mark.parametrize(
    "phase, last", [("sparse", 1), ("export", BLOCKS - 1)], ids=["checkpoint", "export"]
)
def test_a_disk_that_fills(model, place, at, capsys, phase, last):
    """The system refuses files above a size from a moment on, and then no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    at(min(last + 1, BLOCKS - 1), phase,
       lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard)))  # fmt: skip
    try:
        assert main(ARGUMENTS) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = f"icp-jax: the disk is full after block {last}; go on with --resume"
    assert error(capsys) == said
    kept = {p.name for p in (place / "work" / ".out.partial").iterdir()}
    blocks = {f"block-{t:05d}{end}" for t in range(last + 1) for end in ("", ".json")}
    assert kept == blocks | {"lock", "fingerprint.json"}
    assert main([*ARGUMENTS, "--resume"]) == 0
    same(place, model)


def test_an_output_that_cannot_be_written(place, capsys):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere; the next test does it without the system's help")
    (place / "work").chmod(0o555)
    assert main(ARGUMENTS) == 2
    assert "cannot open" in error(capsys)


def test_a_file_system_that_is_read_only(place, capsys, monkeypatch):
    real = Path.mkdir

    def mkdir(self, *args, **options):
        if self.parent == place / "work":
            raise OSError(30, "Read-only file system", str(self))
        real(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert main(ARGUMENTS) == 2
    assert error(capsys).endswith("work/.out.partial: Read-only file system")
    assert list((place / "work").iterdir()) == []


# ---------------------------------------------------------------- damage


def largest(work):
    files = [p for p in (work / "block-00001").rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def manifest(work):
    return work / "block-00001.json"


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("part", [largest, manifest])
@pytest.mark.parametrize("damage", [halve, flip, Path.unlink])
def test_a_damaged_checkpoint(model, place, at, capsys, part, damage):
    at(3, "dense", interrupt)
    assert main(ARGUMENTS) == 130
    assert "after block 2;" in error(capsys)
    damage(part(place / "work" / ".out.partial"))
    seen = []
    at(1, "statistics", lambda: seen.append("block 1 again"))
    assert main([*ARGUMENTS, "--resume"]) == 0
    err = capsys.readouterr().err
    assert "going on after block 0" in err and seen
    if not (part is manifest and damage is Path.unlink):  # without its manifest it never was whole
        assert "icp-jax: the checkpoint of block 1 is damaged: going on after block 0" in err
    same(place, model)


def test_a_damaged_first_checkpoint(model, place, at, capsys):
    at(1, "dense", interrupt)
    assert main(ARGUMENTS) == 130
    flip(place / "work" / ".out.partial" / "block-00000.json")
    assert main([*ARGUMENTS, "--resume"]) == 0
    assert "block 0 is damaged: going on from the beginning" in capsys.readouterr().err
    same(place, model)


def test_damage_between_the_checkpoint_and_the_export(model, place, at, capsys):
    """Within one run: what goes into the output is what was sealed, or nothing does."""
    at(3, "sparse", lambda: flip(largest(place / "work" / ".out.partial")))
    assert main(ARGUMENTS) == 2
    said = "icp-jax: the checkpoint of block 1 is damaged: --resume prunes it again; stopped after"
    assert error(capsys).startswith(said) and not (place / "work" / "out").exists()
    assert main([*ARGUMENTS, "--resume"]) == 0
    assert "block 1 is damaged: going on after block 0" in capsys.readouterr().err
    same(place, model)


def test_a_source_shard_that_changes_while_the_export_is_checked(model, place, at, capsys):
    (place / "model").unlink()
    write_opt(place / "model", num_hidden_layers=BLOCKS, hidden_size=64, word_embed_proj_dim=64)
    at(BLOCKS - 1, "check", lambda: flip(place / "model" / "model.safetensors"))
    assert main(ARGUMENTS) == 2
    said = "model.safetensors changed under the run: put it back as it was; stopped after block 3"
    assert error(capsys) == f"icp-jax: {said}; go on with --resume"
    flip(place / "model" / "model.safetensors")
    assert main([*ARGUMENTS, "--resume"]) == 0
    same(place, model)


def test_a_source_shard_that_changes_under_the_run(model, place, at, capsys):
    (place / "model").unlink()
    write_opt(place / "model", num_hidden_layers=BLOCKS, hidden_size=64, word_embed_proj_dim=64)
    shard = place / "model" / "model.safetensors"
    before = shard.read_bytes()

    def change():
        with shard.open("r+b") as file:  # in place, where the run has it mapped
            file.seek(-2, os.SEEK_END)
            file.write(b"\x01\x02")

    at(2, "prune", change)
    assert main(ARGUMENTS) == 2
    said = "model.safetensors changed under the run: put it back as it was; stopped after block 1"
    assert error(capsys) == f"icp-jax: {said}; go on with --resume"
    assert main([*ARGUMENTS, "--resume"]) == 2
    assert "source model.safetensors changed;" in error(capsys)
    shard.write_bytes(before)
    assert main([*ARGUMENTS, "--resume"]) == 0
    same(place, model)


def test_a_clock_that_jumps(model, place, at, capsys, monkeypatch):
    real, jumps = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: real() + jumps.uniform(-1e8, 1e8))
    at(2, "compensate", interrupt)
    assert main(ARGUMENTS) == 130
    assert main([*ARGUMENTS, "--resume"]) == 0
    same(place, model)
    record = json.loads((place / "work" / "out" / "icp_run.json").read_text())
    assert 0 < record["seconds"] < 600


# ---------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Processes that compile once between them."""
    folder = tmp_path_factory.mktemp("compiled")
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def start(environment, *more):
    command = [sys.executable, "-m", "icp_jax.cli", *ARGUMENTS, *more]
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def until(process, text):
    """Read its standard error up to a line with `text`."""
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"no line with {text!r}")


def test_a_signal_after_a_whole_block(model, place, environment):
    process = start(environment)
    until(process, "block 1 compensate")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    line = err.splitlines()[-1]
    assert line.startswith("icp-jax: interrupted after block ") and "with --resume" in line
    assert main([*ARGUMENTS, "--resume"]) == 0
    same(place, model)


def test_two_runs_at_once(model, place, environment):
    both = [start(environment) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2]
    line = said[codes.index(2)].splitlines()
    assert len(line) == 1 and "another run is at work on" in line[0]
    same(place, model)


PHASES = ("dense", "statistics", "prune", "sparse")
SIGNS = [f"block {t} {phase}" for t in range(BLOCKS) for phase in PHASES]
SIGNS.append(f"block {BLOCKS - 1} export")


def kill_and_resume(model, place, environment, times):
    """kill -9 at random moments after a sign of work, any of them, and go on."""
    moments = random.Random(times)
    process = start(environment)  # compiles, for all
    process.communicate(timeout=120)
    assert process.returncode == 0
    same(place, model)
    whole = []
    for k in range(times):
        (place / "work" / "out").rename(place / f"out-{k}")
        process = start(environment)
        until(process, moments.choice(SIGNS))
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        process.communicate()
        work = place / "work" / ".out.partial"
        whole.append(len(list(work.glob("block-*.json"))))
        done = (place / "work" / "out").exists()
        if not done or work.exists():
            process = start(environment, "--resume")
            _, err = process.communicate(timeout=120)
            assert process.returncode == (2 if done else 0), err
        same(place, model)
    return whole


def died(monkeypatch, before_rename=False):
    """One run that dies as its output gets its name: nothing is tidied up."""
    real = os.rename

    def rename(old, new):
        if Path(new).name == "out" and before_rename:
            raise KeyboardInterrupt
        real(old, new)

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", rename)
        patch.setattr("icp_jax.checkpoint.Work.__exit__", lambda self, *_: self._lock.release())
        return main(ARGUMENTS)


def test_killed_before_the_output_has_its_name(model, place, monkeypatch, capsys):
    assert died(monkeypatch, before_rename=True) == 130
    assert (place / "work" / ".out.partial" / "export").is_dir()
    capsys.readouterr()
    assert main([*ARGUMENTS, "--resume"]) == 0
    assert f"going on after block {BLOCKS - 1}" in capsys.readouterr().err
    same(place, model)


@pytest.mark.parametrize("moved", [False, True])
def test_killed_after_the_output_has_its_name(model, place, monkeypatch, capsys, moved):
    """The finished blocks are of no more use, and go with the next run."""
    assert died(monkeypatch) == 0
    assert len(list((place / "work" / ".out.partial").glob("block-*.json"))) == BLOCKS
    capsys.readouterr()
    if moved:
        (place / "work" / "out").rename(place / "out")
        assert main(ARGUMENTS) == 0
    else:
        assert main(ARGUMENTS) == 2
        assert "work/out exists already" in error(capsys)
    same(place, model)


def test_a_folder_of_another_program_is_left(place):
    (place / "work" / "out").mkdir()
    other = place / "work" / ".out.partial"
    other.mkdir()
    (other / "download").write_text("half")
    assert main(ARGUMENTS) == 2
    assert [path.name for path in other.iterdir()] == ["download"]


def test_killed_and_resumed(model, place, environment):
    kill_and_resume(model, place, environment, 2)


@pytest.mark.slow
def test_killed_at_25_moments_and_resumed(model, place, environment):
    whole = kill_and_resume(model, place, environment, 25)
    assert len(set(whole)) > 2, whole  # the moments were spread over the run
