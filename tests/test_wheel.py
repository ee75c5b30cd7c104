"""What the wheel and the sdist hold and say, and that the wheel alone runs the demo."""

import email
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import page_text
import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# what the packages hold
DATA = {"*.py", "*.typed", "*.txt", "*.json", "*.safetensors", "*.html", "*.css", "*.js"}
TYPED = "Typing :: Typed"
SOURCES = {  # of the sdist, beside the packages
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "pyproject.toml",
    "requirements.lock",
    "requirements-test.lock",
    "benchmarks/pages.py",
    "benchmarks/results/claim.json",
    "configs/opt_125m.py",
    "docs/_generated/error-growth.svg",
    "docs/_generated/results.md",
    "tests/conftest.py",
}


def files(*packages):
    """The files of packages in this checkout, as names from its root."""
    found = {path for name in packages for kind in DATA for path in (ROOT / name).rglob(kind)}
    return {str(path.relative_to(ROOT)) for path in found}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(names in this checkout's wheel, its METADATA, names in the sdist's one folder)."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(archive.read(metadata))
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    return names, said, sources


def test_the_wheel_holds_the_packages_and_nothing_else(built):
    names, _, _ = built
    configs = {f"icp_jax/{name}" for name in files("configs")}
    code = {name for name in names if ".dist-info/" not in name}
    assert code == files("icp_jax", "converters") | configs
    assert {"icp_jax/py.typed", "converters/py.typed", "icp_jax/configs/opt_125m.py"} <= code
    licenses = {name.partition("/licenses/")[2] for name in names if "/licenses/" in name}
    assert licenses == set(PROJECT["license-files"])


def test_the_metadata_is_the_project_s(built):
    _, said, _ = built
    assert said["Name"] == "icp-jax" and said["Version"] == PROJECT["version"]
    assert said["Summary"] == PROJECT["description"] and len(said["Summary"]) <= 512
    assert said["Requires-Python"] == PROJECT["requires-python"]
    assert said["License-Expression"] == "Apache-2.0"
    assert set(said.get_all("License-File")) == set(PROJECT["license-files"])
    assert set(said.get_all("Classifier")) == set(PROJECT["classifiers"]) >= {TYPED}
    assert set(said.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert said["Description-Content-Type"] == "text/markdown"
    assert (
        said.get_payload(decode=True).decode().strip() == (ROOT / "README.md").read_text().strip()
    )


def test_the_sdist_can_be_tested_and_measured(built):
    _, _, sources = built
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    assert sources >= SOURCES | tests | files("icp_jax", "converters", "configs")
    assert not {name for name in sources if name.endswith(".pyc") or ".venv" in name}


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
    for row, shown in zip(result["methods"], page_text.read("demo.json")["methods"], strict=True):
        assert row["perplexity"] == pytest.approx(shown["perplexity"], rel=0.01)  # the README's
    assert (
        Path(result["checkpoint"]).is_relative_to(tmp_path)
        or (tmp_path / result["checkpoint"]).is_dir()
    )
    assert (tmp_path / result["figure"]).is_file()
    assert run("prune", "--config", "opt_pydoc", "--dry-run", "--json")["size"] > 10**6
