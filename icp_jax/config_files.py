"""Config files: Python files that define `get_config()`."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from icp_jax.errors import InputError

SHOWN = 160  # characters shown of an exception's message


def folder() -> Path:
    """The folder of the bundled configs, in the wheel or in the repository."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def find(name: str) -> Path:
    """Find a config file by path or by bundled name. Raises InputError."""
    if (path := Path(name)).is_file():
        return path
    known = sorted(p.stem for p in folder().glob("*.py"))
    if name not in known:
        raise InputError(f"no config {name!r}: give a path, or one of {', '.join(known)}")
    return folder() / f"{name}.py"


def run(path: Path) -> Any:
    """Call the file's `get_config()`. Raises InputError with the line that failed."""
    spec = importlib.util.spec_from_file_location(f"icp_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"config {path} is not a .py file: give a Python file with get_config()")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module by name
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise InputError("no get_config() found; define one that returns an icp_jax.RunConfig")
        return module.get_config()
    except (Exception, SystemExit) as error:  # any error in the user's file is bad input
        del sys.modules[spec.name]
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        if len(said) > SHOWN:
            said = f"{said[:SHOWN]}..."
        raise InputError(f"config {path}{_line(path, error)}: {kind}{said}") from None


def _line(path: Path, error: BaseException) -> str:
    """`, line N` of the file where an error was raised; empty if it was raised elsewhere."""
    if isinstance(error, SyntaxError) and error.filename == str(path.absolute()):
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path.absolute())]
    return f", line {lines[-1]}" if lines else ""
