"""The command line as people meet it: help, speed of start, interruption."""

import os
import signal
import subprocess
import sys
import time

import pytest

from icp_jax.cli import main


@pytest.mark.parametrize("command", [[], ["prune"], ["eval"], ["convert"], ["demo"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert not stop.value.code and f"usage: {' '.join(['icp-jax', *command])}" in out


def test_every_option_says_what_it_does(capsys):
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    out = capsys.readouterr().out
    for option in ("--prune.sparsity", "--compensate.epochs", "--calibration.seq-len", "--dry-run"):
        assert option in out


def test_help_imports_no_heavy_package():
    code = (
        "import sys\nfrom icp_jax.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'flax', 'torch', 'transformers', 'datasets', 'matplotlib', 'orbax'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_nothing(tmp_path, bundled, number):
    args = ["prune", "--config", "opt_pydoc", "--out", "out", "--compensate.epochs", "500"]
    done = subprocess.Popen(
        [sys.executable, "-m", "icp_jax.cli", *args],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for line in done.stderr:
        if "statistics" in line:
            break
    time.sleep(0.5)  # into the statistics' compilation, or what follows
    done.send_signal(number)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
