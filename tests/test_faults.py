"""Faults, provoked as truly as a test can: each is noticed, and going on gives the same bytes."""

import json
import os
import random
import resource
import time
from pathlib import Path

import pytest
from conftest import write_opt
from runs import ARGUMENTS, BLOCKS, error, same

from icp_jax.cli import main

LIMIT = 6_000  # bytes a file: less than a large kernel takes, more than a record


@pytest.fixture
def at(monkeypatch):
    """at(block, phase, act): runs of the command line do `act` at that tick, once."""

    def arrange(block, phase, act):
        todo = [act]

        def tick(now, now_phase, done, total, loss):
            if (now, now_phase) == (block, phase) and todo:
                todo.pop()()

        monkeypatch.setattr("icp_jax.cli.progress._lines", lambda err, label: tick)

    return arrange


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "phase, last", [("sparse", 1), ("export", BLOCKS - 1)], ids=["checkpoint", "export"]
)
def test_a_disk_that_fills(undisturbed, place, at, capsys, phase, last):
    """The system refuses files above a size from a moment on, and then no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    at(min(last + 1, BLOCKS - 1), phase,
       lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard)))  # fmt: skip
    try:
        assert main(ARGUMENTS) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = f"icp-jax: the disk is full after block {last}; continue with --resume"
    assert error(capsys) == said
    kept = {p.name for p in (place / "work" / ".out.partial").iterdir()}
    blocks = {f"block-{t:05d}{end}" for t in range(last + 1) for end in ("", ".json")}
    assert kept == blocks | {"lock", "fingerprint.json"}
    assert main([*ARGUMENTS, "--resume"]) == 0
    same(place, undisturbed)


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
def test_a_damaged_checkpoint(undisturbed, place, at, capsys, part, damage):
    at(3, "dense", interrupt)
    assert main(ARGUMENTS) == 130
    assert "after block 2;" in error(capsys)
    damage(part(place / "work" / ".out.partial"))
    seen = []
    at(1, "statistics", lambda: seen.append("block 1 again"))
    assert main([*ARGUMENTS, "--resume"]) == 0
    err = capsys.readouterr().err
    assert "resuming after block 0" in err and seen
    if not (part is manifest and damage is Path.unlink):  # without its manifest it never was whole
        assert "icp-jax: the checkpoint of block 1 is damaged: resuming after block 0" in err
    same(place, undisturbed)


def test_a_damaged_first_checkpoint(undisturbed, place, at, capsys):
    at(1, "dense", interrupt)
    assert main(ARGUMENTS) == 130
    flip(place / "work" / ".out.partial" / "block-00000.json")
    assert main([*ARGUMENTS, "--resume"]) == 0
    assert "block 0 is damaged: starting from the beginning" in capsys.readouterr().err
    same(place, undisturbed)


def test_damage_between_the_checkpoint_and_the_export(undisturbed, place, at, capsys):
    """Within one run: what goes into the output is what was sealed, or nothing does."""
    at(3, "sparse", lambda: flip(largest(place / "work" / ".out.partial")))
    assert main(ARGUMENTS) == 2
    said = "icp-jax: the checkpoint of block 1 is damaged: --resume prunes it again; stopped after"
    assert error(capsys).startswith(said) and not (place / "work" / "out").exists()
    assert main([*ARGUMENTS, "--resume"]) == 0
    assert "block 1 is damaged: resuming after block 0" in capsys.readouterr().err
    same(place, undisturbed)


def test_a_source_shard_that_changes_while_the_export_is_checked(undisturbed, place, at, capsys):
    (place / "model").unlink()
    write_opt(place / "model", num_hidden_layers=BLOCKS, hidden_size=64, word_embed_proj_dim=64)
    at(BLOCKS - 1, "check", lambda: flip(place / "model" / "model.safetensors"))
    assert main(ARGUMENTS) == 2
    said = "model.safetensors changed during the run: restore the original; stopped after block 3"
    assert error(capsys) == f"icp-jax: {said}; continue with --resume"
    flip(place / "model" / "model.safetensors")
    assert main([*ARGUMENTS, "--resume"]) == 0
    same(place, undisturbed)


def test_a_source_shard_that_changes_under_the_run(undisturbed, place, at, capsys):
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
    said = "model.safetensors changed during the run: restore the original; stopped after block 1"
    assert error(capsys) == f"icp-jax: {said}; continue with --resume"
    assert main([*ARGUMENTS, "--resume"]) == 2
    assert "source model.safetensors changed;" in error(capsys)
    shard.write_bytes(before)
    assert main([*ARGUMENTS, "--resume"]) == 0
    same(place, undisturbed)


def test_a_clock_that_jumps(undisturbed, place, at, capsys, monkeypatch):
    real, jumps = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: real() + jumps.uniform(-1e8, 1e8))
    at(2, "compensate", interrupt)
    assert main(ARGUMENTS) == 130
    assert main([*ARGUMENTS, "--resume"]) == 0
    same(place, undisturbed)
    record = json.loads((place / "work" / "out" / "icp_run.json").read_text())
    assert 0 < record["seconds"] < 600
