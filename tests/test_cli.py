"""The command line as people meet it: help, speed of start, interruption."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from icp_jax import PruneConfig, RunConfig
from icp_jax.backend import compile_cache
from icp_jax.cli import main
from icp_jax.planning.workload import resolved
from icp_jax.streaming.source import FolderSource


@pytest.mark.parametrize("command", [[], ["prune"], ["eval"], ["segment"], ["convert"], ["demo"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert not stop.value.code and f"usage: {' '.join(['icp-jax', *command])}" in out


@pytest.mark.parametrize(
    "command,arguments",
    [
        ("eval", "MODEL"),
        ("segment", "MODEL IMAGE"),
        ("convert", "SRC DST"),
        ("verify", "DIR"),
    ],
)
def test_positional_arguments_have_names(command, arguments, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f" {arguments}" in capsys.readouterr().out.splitlines()[0]


def test_every_option_says_what_it_does(capsys):
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    out = capsys.readouterr().out
    for option in ("--sparsity", "--compensate.epochs", "--seq-len", "--dry-run"):
        assert option in out


def test_a_reader_that_has_read_enough():
    """`icp-jax prune --help | head -1`"""
    code = [sys.executable, "-m", "icp_jax.cli", "prune", "--help"]
    done = subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done.stdout.close()
    assert done.communicate(timeout=60)[1] == "" and done.returncode == 1


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
    args = ["prune", "out", "--config", "opt_pydoc", "--compensate.epochs", "500"]
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


def test_a_second_run_compiles_nothing(tmp_path, opt_folder):
    np.save(tmp_path / "tokens.npy", np.arange(200, dtype=np.int32) % 2000)
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_LOG_COMPILES": "1"}
    args = [str(opt_folder), "--data", "tokens.npy"]
    args += ["--samples", "4", "--seq-len", "16"]
    compiled, hits = [], []
    for out in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-m", "icp_jax.cli", "prune", args[0], out, *args[1:]],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        compiled.append({path.name for path in (tmp_path / "cache").rglob("jit_*-cache")})
        hits.append(done.stderr.count("Persistent compilation cache hit"))
    assert len(compiled[0]) > 5 and compiled[1] == compiled[0]
    assert hits[1] >= len(compiled[0]) > hits[0]


def test_every_program_is_cached_wherever_the_cache_is(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("JAX_PERSISTENT_CACHE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        compile_cache.use()
        assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)


def test_an_interrupted_demo_says_what_is_there(tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("icp_jax.demo._compare", stop)
    assert main(["demo", "--out", str(tmp_path / "d")]) == 130
    said = f"icp-jax: interrupted in the demo; finished results are in {tmp_path / 'd'}\n"
    assert capsys.readouterr().err == said


def dry(capsys, *options):
    """The sparsity of every layer of a dry run, in order."""
    assert main(["prune", *options, "--dry-run", "--json"]) == 0
    return [layer["sparsity"] for layer in json.loads(capsys.readouterr().out)["layers"]]


def test_what_replaces_alpha_and_beta_of_a_config(tmp_path, opt_folder, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "from icp_jax import CompensateConfig, PruneConfig, RunConfig\n"
        "def get_config():\n"
        f"    return RunConfig(model={str(opt_folder)!r}, prune=PruneConfig(alpha=0.8, beta=0.1, "
        "rearrange='qkv-f1', damping=0.02, block_size=64), seed=5, "
        "compensate=CompensateConfig(epochs=3))\n"
    )
    own = dry(capsys, "--config", str(path))
    assert max(own) - min(own) > 0.1
    assert dry(capsys, "--config", str(path), "--method", "icp") == own
    for method in ("sparsegpt", "wanda"):
        assert dry(capsys, "--config", str(path), f"--method={method}") == (
            dry(capsys, str(opt_folder), "--method", method)
        )
    assert set(dry(capsys, "--config", str(path), "--pattern", "1:4")) == {0.75}
    for none in ("unstructured", "None"):
        assert dry(capsys, "--config", str(path), "--pattern", none) == own
    settings = ["--prune.damping", "0.1"], ["--compensate.lr", "1e-3"], ["--seed", "1"]
    for given in settings:  # what the command line says itself is refused
        assert main(["prune", "o", "--config", str(path), "--method", "wanda", *given]) == 2
        assert f"{given[0].removeprefix('--')} applies to icp" in capsys.readouterr().err
    last = ["--method", "wanda", "--method", "icp"]
    assert dry(capsys, "--config", str(path), *last) == own
    assert main(["prune", "o", "--config", str(path), "--pattern", "2:4", "--prune.beta", "0"]) == 2


def test_unstructured_may_be_said(opt_folder, capsys):
    source = FolderSource(opt_folder)
    config = RunConfig(model=str(opt_folder), prune=PruneConfig(pattern="unstructured"))
    found = resolved(config, source).prune
    assert (found.alpha, found.beta) == (0.691, 0.2)
    source.close()
