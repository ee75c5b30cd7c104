"""Signals wait for a tick once a run ticks, and for nothing before."""

import os
import signal

import pytest

from icp_jax.cli import interrupts, main
from icp_jax.runs import run
from icp_jax.runs.resume import Work


@pytest.fixture
def installed():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    interrupts.install()
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_next_tick(installed, number):
    seen = []
    with interrupts.at_ticks(seen.append) as tick:
        tick(1)
        os.kill(os.getpid(), number)
        seen.append("still here")
        with pytest.raises(KeyboardInterrupt):
            tick(2)
    assert seen == [1, "still here"]


def test_before_the_first_tick_and_after_the_last_nothing_waits(installed):
    with interrupts.at_ticks(lambda: None), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    interrupts.install()
    with interrupts.at_ticks(lambda: None) as tick:
        tick()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_the_last_tick_is_raised_on_the_way_out(installed):
    seen = []
    with pytest.raises(KeyboardInterrupt), interrupts.at_ticks(seen.append) as tick:
        tick(1)
        os.kill(os.getpid(), signal.SIGINT)
        seen.append("the rest")
    assert seen == [1, "the rest"]


@pytest.fixture
def ended(installed, opt_folder, bundled, tmp_path, monkeypatch, capsys):
    """Runs `prune` with a signal after some function of it; gives the status and the last line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text((bundled / "calibration.txt").read_text()[:6000])
    args = ["prune", str(opt_folder), "out", "--method", "magnitude", "--sparsity", "0.5"]
    args += ["--data", "text.txt", "--samples", "2"]

    def ended(owner, name, *more):
        real = getattr(owner, name)

        def signalled(*given):
            found = real(*given)
            os.kill(os.getpid(), signal.SIGINT)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, signalled)
            status = main([*args, *more])
        lines = capsys.readouterr().err.splitlines()
        assert sum(line.startswith("icp-jax: ") for line in lines) == 1
        assert lines[-1].startswith("icp-jax: ")
        return status, lines[-1], args

    return ended


def test_a_signal_while_the_output_is_checked(ended, tmp_path):
    status, line, args = ended(run, "verify_export")
    assert (status, line) == (130, "icp-jax: interrupted after block 2; continue with --resume")
    assert not (tmp_path / "out").exists()
    assert main([*args, "--resume"]) == 0 and (tmp_path / "out").is_dir()


def test_a_signal_while_the_output_gets_its_name(ended, tmp_path):
    status, line, _ = ended(Work, "publish")
    assert (status, line) == (
        130,
        f"icp-jax: interrupted after the run had finished; {tmp_path / 'out'} is complete",
    )
    assert (tmp_path / "out" / "icp_run.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "text.txt"]
