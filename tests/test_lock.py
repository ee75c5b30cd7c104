"""The lock files: complete, hashed, and what `make` installs from."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKS = (
    "requirements.lock",
    "requirements-test.lock",
    "requirements-docs.lock",
    "requirements-cuda.lock",
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")


def pins(lock):
    """Each line of a lock with its hashes: a requirement, and how many."""
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(Requirement(line.split("--hash")[0]), line.count("--hash=sha256:")) for line in lines]


def asked(lock):
    found = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["build"]]
    for extra, lines in PROJECT["project"]["optional-dependencies"].items():
        found += lines if lock == f"requirements-{extra}.lock" else []
    return [Requirement(line) for line in found]


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("processor", MACHINES)
def test_one_version_of_each_package_in_its_range(lock, python, processor):
    place = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": processor,
        "sys_platform": "linux",
        "platform_python_implementation": "CPython",
    }
    held = [pin for pin, _ in pins(lock) if pin.marker is None or pin.marker.evaluate(place)]
    versions = {canonicalize_name(pin.name): str(pin.specifier) for pin in held}
    assert len(versions) == len(held)
    for wanted in asked(lock):
        if wanted.marker is None or wanted.marker.evaluate(place):
            version = versions[canonicalize_name(wanted.name)]
            assert version.startswith("==") and wanted.specifier.contains(version[2:]), wanted


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_has_hashes_and_no_place(lock):
    assert all(hashes for _, hashes in pins(lock))
    assert not any(pin.url or pin.name == "torch" for pin, _ in pins(lock))
    assert not re.search(r"://|file:|^-|^\S*/", (ROOT / lock).read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "target,lock,ranges",
    [
        ("installed", LOCKS[0], "."),
        ("tested", LOCKS[1], ".[test]"),
        ("documented", LOCKS[2], ".[docs]"),
        ("on-gpu", LOCKS[3], ".[cuda,test]"),
    ],
)
@pytest.mark.parametrize("held", [True, False])
def test_make_installs_from_it_where_it_holds(tmp_path, target, lock, ranges, held):
    """With a Python that writes down what it is asked to do."""
    fake = tmp_path / "venv" / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exit {int(not held)}\necho "$@" >>{tmp_path}/log\n'
    )
    fake.chmod(0o755)
    make = ["make", "-s", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/{target}"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    log = (tmp_path / "log").read_text().splitlines()
    assert ("torch==2.13.0" in log[0]) == (held and target == "tested")
    if held:
        assert log[-2:] == [
            f"-m pip install -q --require-hashes -r {lock}",
            "-m pip install -q --no-deps --no-build-isolation -e .",
        ]
    else:
        assert log == [f"-m pip install -q -e {ranges}"]
        assert f"{lock} is not for this Python or processor" in done.stdout
