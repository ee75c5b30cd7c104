"""Interrupted runs: what stays of them, and that going on gives what an uninterrupted run gives."""

import dataclasses
import json

import filelock
import numpy as np
import pytest
from conftest import write_opt
from jax.experimental import multihost_utils
from runs import ARGUMENTS, BLOCKS, contents

from converters.rules import ConversionError
from icp_jax import CalibrationConfig, CompensateConfig, PruneConfig, QuantConfig, RunConfig
from icp_jax.cli import main
from icp_jax.errors import InputError, Kept
from icp_jax.runs.run import prune_folder
from icp_jax.streaming.mesh import Devices
from icp_jax.streaming.source import FolderSource


@pytest.fixture
def place(tmp_path, bundled):
    """A model of four blocks, a text, and a folder for what is written."""
    write_opt(tmp_path / "model", num_hidden_layers=BLOCKS, shard_bytes=90_000)
    (tmp_path / "text.txt").write_text((bundled / "calibration.txt").read_text()[:6000])
    (tmp_path / "work").mkdir()
    return tmp_path


def config_for(place, **changes):
    return RunConfig(
        model=str(place / "model"),
        out=str(place / "work" / "out"),
        prune=PruneConfig(sparsity=0.5),
        compensate=CompensateConfig(epochs=2, lr=1e-3),
        calibration=CalibrationConfig(str(place / "text.txt"), samples=6),
        **changes,
    )


@pytest.fixture
def whole(place):
    """What an uninterrupted run gives."""
    out = place / "work" / "whole"
    prune_folder(dataclasses.replace(config_for(place), out=str(out)))
    return contents(out)


class Stop(Exception):
    """Stands for anything that ends a run."""


def stop_in(block, phase, error=Stop):
    """A progress callback that ends the run in a phase of a block."""

    def progress(now, now_phase, done, total, loss):
        if (now, now_phase) == (block, phase):
            raise error

    return progress


def cut_off(config, block, phase, **options):
    with pytest.raises(Stop):
        prune_folder(config, stop_in(block, phase), **options)


class Ticks:
    """Which phases of which blocks a run goes through."""

    def __init__(self):
        self.seen = []

    def __call__(self, block, phase, done, total, loss):
        if (block, phase) not in self.seen:
            self.seen.append((block, phase))

    def of(self, phase):
        return [block for block, name in self.seen if name == phase]


@pytest.mark.parametrize(
    "quant", [QuantConfig(), QuantConfig(bits=4, group=32, packed=True)], ids=["plain", "packed"]
)
@pytest.mark.parametrize(
    "block, phase, first", [(1, "statistics", 1), (2, "sparse", 2), (BLOCKS - 1, "check", BLOCKS)]
)
def test_going_on_gives_the_same_bytes(place, quant, block, phase, first):
    config = config_for(place, quant=quant)
    prune_folder(dataclasses.replace(config, out=str(place / "work" / "whole")))
    cut_off(config, block, phase)
    assert not (place / "work" / "out").exists()
    said, ticks = [], Ticks()
    prune_folder(config, ticks, resume=True, say=said.append)
    assert said == [f"resuming after block {first - 1}"]
    assert ticks.of("statistics") == list(range(first, BLOCKS))  # none again for finished blocks
    assert ticks.of("compensate") == list(range(first, BLOCKS))
    assert contents(place / "work" / "out") == contents(place / "work" / "whole")
    assert sorted(p.name for p in (place / "work").iterdir()) == ["out", "whole"]


def test_a_run_cut_off_in_a_re_tune_goes_on(place):
    """The re-tune of block 2 is done again from the pruned block, not from a tuned one."""
    config = config_for(place)
    config = dataclasses.replace(config, prune=PruneConfig("icp+", 0.5))
    done = prune_folder(dataclasses.replace(config, out=str(place / "work" / "whole")))
    assert all(block.retune for block in done.blocks)
    cut_off(config, 2, "retune")
    prune_folder(config, ticks := Ticks(), resume=True)
    assert ticks.of("retune") == [2, 3]
    assert contents(place / "work" / "out") == contents(place / "work" / "whole")


def test_cut_off_twice(place, whole):
    cut_off(config_for(place), 1, "compensate")
    cut_off(config_for(place), 3, "dense", resume=True)
    prune_folder(config_for(place), resume=True)
    assert contents(place / "work" / "out") == whole


def test_nothing_to_resume_starts_from_the_beginning(place, whole):
    said = []
    prune_folder(config_for(place), resume=True, say=said.append)
    assert said == ["no interrupted run found: starting from the beginning"]
    assert contents(place / "work" / "out") == whole


def test_without_resume_finished_blocks_are_not_thrown_away(place):
    cut_off(config_for(place), 2, "prune")
    before = sorted((place / "work").rglob("*"))
    with pytest.raises(Kept, match=r"\.out\.partial holds 2 finished blocks .*--resume .*delete"):
        prune_folder(config_for(place))
    assert sorted((place / "work").rglob("*")) == before


@pytest.mark.parametrize("block, phase", [(0, "dense"), (0, "sparse")])
def test_nothing_is_left_where_no_block_is_whole(place, block, phase):
    cut_off(config_for(place), block, phase)
    assert list((place / "work").iterdir()) == []


def test_nothing_is_left_where_keep_is_off(place):
    cut_off(config_for(place), 2, "prune", keep=False)
    assert list((place / "work").iterdir()) == []


@pytest.mark.parametrize("what", ["settings, weights or versions", "calibration samples"])
def test_hosts_that_differ_do_not_cost_what_was_finished(place, monkeypatch, what):
    cut_off(config_for(place), 2, "prune")
    before = sorted(p.name for p in (place / "work" / ".out.partial").iterdir())

    real = Devices.check_same

    def differ(self, asked, array):  # as between two processes, which only this asks about here
        with monkeypatch.context() as patch:
            if asked == what:
                patch.setattr(Devices, "_across", True)
                patch.setattr(multihost_utils, "process_allgather", lambda x: np.array([x, x + 1]))
            real(self, asked, array)

    monkeypatch.setattr(Devices, "check_same", differ)
    with pytest.raises(Kept, match=f"different {what}"):
        prune_folder(config_for(place), resume=True)
    assert sorted(p.name for p in (place / "work" / ".out.partial").iterdir()) == before


def test_a_source_that_breaks_while_it_is_read_does_not_cost_what_was_finished(place, monkeypatch):
    cut_off(config_for(place), 2, "prune")

    def broken(self, t):
        raise ConversionError("the file cannot be read any more")

    monkeypatch.setattr(FolderSource, "block", broken)
    with pytest.raises(ConversionError, match="any more"):
        prune_folder(config_for(place), resume=True)
    assert (place / "work" / ".out.partial" / "block-00001.json").exists()
    monkeypatch.undo()
    said = []
    prune_folder(config_for(place), resume=True, say=said.append)
    assert said == ["resuming after block 1"]


def test_bad_input_does_not_cost_what_was_finished(place):
    """A slip of the pen beside --resume."""
    cut_off(config_for(place), 2, "prune")
    before = sorted((place / "work").rglob("*"))
    wrong = dataclasses.replace(config_for(place), model=str(place / "nowhere"))
    with pytest.raises(InputError, match="no such folder"):
        prune_folder(wrong, resume=True)
    assert sorted((place / "work").rglob("*")) == before


def test_the_second_run_is_told(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    work = place / "work" / ".out.partial"
    work.mkdir()
    with filelock.FileLock(work / "lock"):
        assert main(ARGUMENTS) == 2
        assert main([*ARGUMENTS, "--resume"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and all("another run is writing" in line for line in err)
    assert main(ARGUMENTS) == 0  # a lock that nobody holds is in nobody's way


def test_an_interruption_says_how_to_go_on(place, whole, capsys, monkeypatch):
    monkeypatch.chdir(place)
    real = stop_in(2, "statistics", KeyboardInterrupt)
    monkeypatch.setattr("icp_jax.cli.progress._lines", lambda err, label: real)
    assert main(ARGUMENTS) == 130
    line = "icp-jax: interrupted after block 1; continue with --resume\n"
    assert capsys.readouterr().err == line
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert main([*ARGUMENTS, "--resume"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == "icp-jax: resuming after block 1"
    assert contents(place / "work" / "out")[0] == whole[0]


def test_the_record_counts_all_the_time_spent(place):
    cut_off(config_for(place), 3, "prune")
    manifests = sorted((place / "work" / ".out.partial").glob("block-*.json"))
    first = [json.loads(path.read_text())["report"] for path in manifests]
    spent = sum(sum(report["seconds"].values()) for report in first)
    done = prune_folder(config_for(place), resume=True)
    record = json.loads((done.out / "icp_run.json").read_text())
    assert [b["seconds"] for b in record["blocks"][:3]] == [r["seconds"] for r in first]
    last = sum(record["blocks"][3]["seconds"].values())
    assert record["seconds"] >= np.round(spent + last, 3) - 0.01
