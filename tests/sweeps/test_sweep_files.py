"""Sweep files: those of the package, and what is said of bad ones."""

from contextlib import closing

import pytest
import small_sweep
from conftest import write_llama

import icp_jax
from icp_jax import config_files
from icp_jax.cli import main
from icp_jax.errors import Infeasible
from icp_jax.runs.job import job
from icp_jax.streaming.source import FolderSource
from icp_jax.sweeps.settings import FILE, at, listed, load

COUNTS = {"table1": 20, "rearrangements": 10, "alpha_beta": 25, "lr_epochs": 16}


def test_the_bundled_sweeps_are_known():
    assert {path.stem for path in (config_files.folder() / "sweeps").glob("*.py")} == set(COUNTS)
    assert config_files.find("table1", FILE).parent.name == "sweeps"


@pytest.mark.parametrize("name", COUNTS)
def test_bundled_sweeps_are_feasible(name, bundled, tmp_path):
    """On the bundled model, and on a Llama, whose layers have other roles."""
    made = load(name)
    for model in (bundled, write_llama(tmp_path / "llama", num_hidden_layers=6)):
        with closing(FolderSource(model)) as source:
            points = listed(made, source.family)
            assert len(points) == COUNTS[name]
            for point in points:
                try:
                    job(source, at(made.base, point))
                except Infeasible:  # a small Llama takes less
                    assert model != bundled


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1\n", "no get_sweep() found; define one that returns an icp_jax.sweeps.Sweep"),
        ("def get_sweep():\n    return 3\n", "get_sweep() must return an icp_jax.sweeps.Sweep"),
        ("def get_sweep():\n    return nowhere\n", "line 2: NameError: name 'nowhere'"),
        ("a = = 1\n", "line 1: SyntaxError"),
        (
            "from icp_jax.sweeps import *\nget_sweep = lambda: Sweep('opt_pydoc', data='x')\n",
            "a sweep needs either points or a space: give one of them",
        ),
        (
            "from icp_jax.sweeps import *\nget_sweep = lambda: Sweep('opt_pydoc', [{}])\n",
            "the sweep's data is missing a text: set it in the sweep file",
        ),
        (
            "from icp_jax.sweeps import *\nget_sweep = lambda: Sweep('opt', [{}], data='x')\n",
            "no config 'opt': give a path, or one of",
        ),
        (
            "from icp_jax.sweeps import *\nget_sweep = lambda: Sweep('opt_pydoc', 3, data='x')\n",
            "points must be a list of dicts of settings, got 3",
        ),
    ],
)
def test_a_bad_sweep_file_is_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"icp-jax: sweep {path}") and message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fields, options, message",
    [
        ("[{'prune.sparsity': 2}]", [], "point prune.sparsity 2: prune.sparsity must be in"),
        ("[{'prune.rearrange': 'q-z', 'prune.beta': 0.1}]", [], "q-z"),
        ("[3]", [], "a point must be a dict of settings, got 3"),
        ("[{}]", ["--data", "nowhere.txt"], "nowhere.txt"),
        ("[{}]", ["--trials", "0"], "trials must be above 0, got 0"),
        ("[{}]", ["--budget", "-1"], "budget must be above 0, got -1.0"),
        ("[{}]", ["--model", "./nowhere"], "no such folder"),
        ("[{}]", ["--export-best", "no/such/place"], "does not exist: create it"),
        ("lambda family: []", [], "the sweep has no points: give at least one"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    opt_folder, tmp_path, capsys, fields, options, message
):
    path = small_sweep.write(opt_folder, tmp_path, fields)
    assert main(["sweep", path, "--out", str(tmp_path / "out"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_vision_model_is_refused(tmp_path, capsys):
    from vision import small_sam

    small_sam.write_sam(tmp_path / "sam")
    asked = ["sweep", "alpha_beta", "--out", str(tmp_path / "out"), "--model"]
    assert main([*asked, str(tmp_path / "sam")]) == 2
    assert "so it needs a language model" in capsys.readouterr().err


def test_another_folder_is_left(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for more in ([], ["--resume"]):
        assert main(["sweep", "alpha_beta", "--out", str(tmp_path / "out"), *more]) == 2
        assert "exists already" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_public_name():
    from icp_jax.sweeps.run import sweep

    assert icp_jax.sweep is sweep
