"""Runs in processes that are stopped, killed, or two at once: going on gives the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import ARGUMENTS, BLOCKS, error, same

from icp_jax.cli import main


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


def test_a_signal_after_a_whole_block(undisturbed, place, environment):
    process = start(environment)
    until(process, "block 1 compensate")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    line = err.splitlines()[-1]
    assert line.startswith("icp-jax: interrupted after block ") and "with --resume" in line
    assert main([*ARGUMENTS, "--resume"]) == 0
    same(place, undisturbed)


def test_two_runs_at_once(undisturbed, place, environment):
    both = [start(environment) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2]
    line = said[codes.index(2)].splitlines()
    assert len(line) == 1 and "another run is writing" in line[0]
    same(place, undisturbed)


PHASES = ("dense", "statistics", "prune", "sparse")
SIGNS = [f"block {t} {phase}" for t in range(BLOCKS) for phase in PHASES]
SIGNS.append(f"block {BLOCKS - 1} export")


def kill_and_resume(undisturbed, place, environment, times):
    """kill -9 at random moments after a sign of work, any of them, and go on."""
    moments = random.Random(times)
    process = start(environment)  # compiles, for all
    process.communicate(timeout=120)
    assert process.returncode == 0
    same(place, undisturbed)
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
        same(place, undisturbed)
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
        patch.setattr("icp_jax.runs.resume.Work.__exit__", lambda self, *_: self._lock.release())
        return main(ARGUMENTS)


def test_killed_before_the_output_has_its_name(undisturbed, place, monkeypatch, capsys):
    assert died(monkeypatch, before_rename=True) == 130
    assert (place / "work" / ".out.partial" / "export").is_dir()
    capsys.readouterr()
    assert main([*ARGUMENTS, "--resume"]) == 0
    assert f"resuming after block {BLOCKS - 1}" in capsys.readouterr().err
    same(place, undisturbed)


@pytest.mark.parametrize("moved", [False, True])
def test_killed_after_the_output_has_its_name(undisturbed, place, monkeypatch, capsys, moved):
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
    same(place, undisturbed)


def test_a_folder_of_another_program_is_left(place):
    (place / "work" / "out").mkdir()
    other = place / "work" / ".out.partial"
    other.mkdir()
    (other / "download").write_text("half")
    assert main(ARGUMENTS) == 2
    assert [path.name for path in other.iterdir()] == ["download"]


@pytest.mark.slow
def test_killed_and_resumed(undisturbed, place, environment):
    kill_and_resume(undisturbed, place, environment, 2)


@pytest.mark.slow
def test_killed_at_25_moments_and_resumed(undisturbed, place, environment):
    whole = kill_and_resume(undisturbed, place, environment, 25)
    assert len(set(whole)) > 2, whole  # the moments were spread over the run
