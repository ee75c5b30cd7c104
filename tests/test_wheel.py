"""The wheel alone holds all that `icp-jax demo` and `--config` need."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_in_another_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    top = {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")}
    assert top == {"icp_jax", "converters"}
    assert (site / "icp_jax" / "configs" / "opt_125m.py").is_file()
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*args):
        done = subprocess.run(
            [sys.executable, "-m", "icp_jax.cli", *args],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    result = run("demo", "--json")
    methods = [row["method"] for row in result["methods"]]
    assert methods == ["magnitude", "wanda", "sparsegpt", "icp"]
    assert all(abs(row["sparsity"] - 0.7) < 1e-3 for row in result["methods"])
    assert (
        Path(result["checkpoint"]).is_relative_to(tmp_path)
        or (tmp_path / result["checkpoint"]).is_dir()
    )
    assert (tmp_path / result["figure"]).is_file()
    assert run("prune", "--config", "opt_pydoc", "--dry-run", "--json")["size"] > 10**6
