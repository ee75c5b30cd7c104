"""Configs: Python files with `get_config()`, given by path or by the name of one in the package."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from icp_jax.errors import InputError

SHOWN = 160  # characters of a message that is not ours


def folder() -> Path:
    """The folder of the configs that come with the package: in the wheel, or in the repository."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def find(name: str) -> Path:
    """The file that a path, or a name from the package, stands for. Raises InputError."""
    if (path := Path(name)).is_file():
        return path
    known = sorted(p.stem for p in folder().glob("*.py"))
    if name not in known:
        raise InputError(f"no config {name!r}: give a path, or one of {', '.join(known)}")
    return folder() / f"{name}.py"


def run(path: Path) -> Any:
    """The result of the file's `get_config()`. Raises InputError that names the line."""
    spec = importlib.util.spec_from_file_location(f"icp_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module by its name
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise InputError("it defines no get_config()")
        return module.get_config()
    except (Exception, SystemExit) as error:  # whatever a user's file does wrong is bad input
        del sys.modules[spec.name]
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        if len(said) > SHOWN:
            said = f"{said[:SHOWN]}..."
        raise InputError(f"config {path}{_line(path, error)}: {kind}{said}") from None


def _line(path: Path, error: BaseException) -> str:
    """Where in the file an error arose; empty where it did not."""
    if isinstance(error, SyntaxError) and error.filename == str(path.absolute()):
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path.absolute())]
    return f", line {lines[-1]}" if lines else ""
