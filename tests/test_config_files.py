"""Configs in Python files: what they may hold, and what is said of those that fail."""

import pytest
from test_config import run_of

from icp_jax.cli import main
from icp_jax.config import CompensateConfig, PruneConfig, check, load, rechosen
from icp_jax.errors import InputError


def written(folder, text):
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


def test_a_config_may_define_dataclasses(tmp_path):
    text = (
        "from __future__ import annotations\n"
        "from dataclasses import KW_ONLY, dataclass\n"
        "from typing import ClassVar\n"
        "from icp_jax import PruneConfig, RunConfig\n"
        "@dataclass\n"
        "class Mine:\n"
        "    kind: ClassVar[str] = 'mine'\n"
        "    _: KW_ONLY\n"
        "    sparsity: float = 0.5\n"
        "@dataclass(frozen=True)\n"
        "class Run(RunConfig):\n"
        "    note: str = ''\n"
        "def get_config():\n"
        "    return Run(prune=PruneConfig(sparsity=Mine().sparsity))\n"
    )
    assert load(written(tmp_path, text)) == run_of(prune__sparsity=0.5)


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1\ndef get_config():\n    return nowhere\n", "line 3: NameError: name 'nowhere'"),
        ("import json\n\njson.loads('{')\n", "line 3: JSONDecodeError"),
        ("a = 1\nb = = 2\n", "line 2: SyntaxError: invalid syntax"),
        ("a = 1\n  b = 2\n", "line 2: IndentationError: unexpected indent"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("raise ValueError('x' * 999)\n", r"line 1: ValueError: x{160}\.\.\.$"),
        ("x = 1\n", r"mine.py: no get_config\(\) found; define one that returns an icp_jax.RunC"),
        ("get_config = lambda: None\n", "must return an icp_jax.RunConfig"),
        (
            "import icp_jax\ndef get_config():\n    return icp_jax.RunConfig(dtype='half')\n",
            "mine.py: dtype must be auto, float32 or bfloat16, got 'half'",
        ),
    ],
)
def test_what_is_wrong_with_a_config_is_one_line(tmp_path, capsys, text, message):
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=message):
        load(path)
    assert main(["prune", "--config", path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"icp-jax: config {path}")


@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "magnitude"])
def test_a_config_for_icp_serves_other_methods(method):
    run = rechosen(load("opt_125m"), method)
    assert check(run) == run and run.prune.sparsity == 0.7
    assert run.calibration == load("opt_125m").calibration
    assert (run.prune.alpha, run.prune.beta, run.prune.rearrange) == (None, None, None)
    assert run.compensate == CompensateConfig()


def test_a_config_serves_a_pattern():
    run = rechosen(load("opt_125m"), None, "2:4")
    assert check(run) == run and run.prune == PruneConfig(pattern="2:4")
    assert run.compensate == load("opt_125m").compensate
