"""Config files and sweep files: Python files that define `get_config()` or `get_sweep()`."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from icp_jax.errors import InputError

T = TypeVar("T")

SHOWN = 160  # characters shown of an exception's message


class Kind(NamedTuple):
    """A kind of file."""

    name: str  # in messages
    function: str  # that the file defines
    returns: str
    under: str = ""  # the folder of the bundled ones, inside that of the configs


CONFIG = Kind("config", "get_config", "an icp_jax.RunConfig")


def folder() -> Path:
    """The folder of the bundled configs, in the wheel or in the repository."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def find(name: str, kind: Kind = CONFIG) -> Path:
    """Find a file by path or by bundled name. Raises InputError."""
    if (path := Path(name)).is_file():
        return path
    bundled = folder() / kind.under
    known = sorted(p.stem for p in bundled.glob("*.py"))
    if name not in known:
        raise InputError(f"no {kind.name} {name!r}: give a path, or one of {', '.join(known)}")
    return bundled / f"{name}.py"


def run(path: Path, kind: Kind = CONFIG) -> Any:
    """Call the file's function. Raises InputError with the line that failed."""
    spec = importlib.util.spec_from_file_location(f"icp_jax_{kind.name}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(
            f"{kind.name} {path} is not a .py file: give a Python file with {kind.function}()"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module by name
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, kind.function, None)):
            raise InputError(f"no {kind.function}() found; define one that returns {kind.returns}")
        return getattr(module, kind.function)()
    except (Exception, SystemExit) as error:  # any error in the user's file is bad input
        del sys.modules[spec.name]
        raised = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        if len(said) > SHOWN:
            said = f"{said[:SHOWN]}..."
        raise InputError(f"{kind.name} {path}{_line(path, error)}: {raised}{said}") from None


def load(name: str, kind: Kind, returned: type[T], check: Callable[[T], T]) -> T:
    """Load and validate what a file returns, by path or bundled name. Raises InputError."""
    path = find(name, kind)
    found = run(path, kind)
    if not isinstance(found, returned):
        raise InputError(f"{kind.name} {path}: {kind.function}() must return {kind.returns}")
    try:
        return check(found)
    except InputError as error:
        raise InputError(f"{kind.name} {path}: {error}") from None


def _line(path: Path, error: BaseException) -> str:
    """`, line N` of the file where an error was raised; empty if it was raised elsewhere."""
    if isinstance(error, SyntaxError) and error.filename == str(path.absolute()):
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path.absolute())]
    return f", line {lines[-1]}" if lines else ""
