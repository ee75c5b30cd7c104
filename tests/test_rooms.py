"""The rooms of the package, and which of them may import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "icp_jax"
ROOMS = sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))
BELOW = {  # a room, and the rooms that it may import
    "backend": set(),
    "models": {"backend"},
    "core": {"models", "backend"},
    "streaming": {"core", "models", "backend"},
    "generation": {"streaming", "core", "models", "backend"},
    "data": {"generation", "streaming", "models", "vision"},
    "vision": {"data", "streaming", "models", "backend"},
    "planning": {"data", "streaming", "core", "models", "backend"},
    "evaluation": {"vision", "data", "generation", "streaming", "core", "models", "backend"},
    "report": set(),
    "runs": {"report", "planning", "evaluation", "data", "streaming", "core", "models", "backend"},
    "sweeps": {
        "runs",
        "report",
        "planning",
        "evaluation",
        "data",
        "streaming",
        "core",
        "models",
        "backend",
    },
}
PURE = ("backend", "models", "core")  # arrays in, arrays out
IMPURE = ("config", "settings", "checks", "pathlib", "os", "io", "shutil")
IMPURE += ("threading", "concurrent", "subprocess")
BACKEND = ("compile_cache", "heap")  # of `backend`: what is for the command line


def imports(path):
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def inside(room):
    return sorted((PACKAGE / room).rglob("*.py"))


def test_all_rooms_are_in_the_table():
    assert set(ROOMS) - {"cli"} == set(BELOW)


@pytest.mark.parametrize("room", PURE)
def test_what_is_traced_does_not_import_the_backend_on_first_use(room):
    """Its context is part of jit's cache key: made in the first trace, it would cost a second."""
    for path in inside(room):
        assert "icp_jax.backend" not in imports(path), path


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_those_below_it(room):
    for path in inside(room):
        for name in imports(path):
            package, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if package == "icp_jax" and other in ROOMS and other != room:
                assert other in BELOW[room], f"{path.name} imports {name}"


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_know_no_settings_files_or_threads(room):
    for path in inside(room):
        if path.stem in BACKEND:
            continue
        for name in imports(path):
            parts = name.removeprefix("icp_jax.").split(".")
            assert parts[0] not in IMPURE, f"{path.name} imports {name}"


def test_one_place_asks_which_backend_it_is():
    asking = [p for p in PACKAGE.rglob("*.py") if "default_backend" in p.read_text()]
    assert [p.relative_to(PACKAGE).as_posix() for p in asking] == ["backend/current.py"]
