"""Render pages and write them: one self-contained file each, whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from converters.files import REPORT
from icp_jax.errors import InputError
from icp_jax.report import compare_page, folders, run_page, sweep_page

GENERATOR = '<meta name="generator" content="icp-jax">'  # in every page that may be replaced
HEAD = 4096  # bytes in which it stands


def render(template: str, variables: dict[str, Any]) -> str:
    """A page as HTML. template: a file of `templates`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    place = FileSystemLoader(Path(__file__).parent / "templates")
    pages = Environment(
        loader=place, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return pages.get_template(template).render(**variables)


def run_html(record: dict[str, Any]) -> str:
    """The page of one run. record: the content of its result file."""
    return render("run.html", run_page.page(record))


def html(found: Sequence[folders.Found]) -> str:
    """The page of what one folder holds, or of several runs."""
    first = found[0]
    if len(found) == 1 and first.kind == "run":
        return run_html(first.record)
    if len(found) == 1 and first.kind == "sweep":
        name = first.folder.resolve().name
        return render("sweep.html", sweep_page.page(first.record, first.rows, name))
    runs: list[tuple[str, dict[str, Any]]] = []
    for one in found:
        if one.kind == "sweep":
            raise InputError(f"{one.folder} is a sweep: give it alone, or give runs")
        rows = one.rows or [one.record]
        name = one.folder.resolve().name
        methods = [row["config"]["prune"]["method"] for row in rows]
        lead = f"{name}/" if len(found) > 1 else ""
        names = [f"{lead}{method}" for method in methods] if one.rows else [name]
        runs += zip(names, rows, strict=True)
    demo = first.record if len(found) == 1 else None
    title = f"{demo['model']} pruned by {len(runs)} methods" if demo else ""
    return render("compare.html", compare_page.page(runs, title, demo))


def report(given: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Make the report of a run, a demo or a sweep anew, or compare several runs.

    given: their folders. out: the file; unset: `report.html` in the only folder, or here for
    several. An earlier report is replaced, any other file is not. Raises InputError.
    """
    if not given:
        raise InputError("no folder given: give the output of prune, demo or sweep")
    found = [folders.read(folder) for folder in given]
    path = Path(out).expanduser() if out else (
        found[0].folder / REPORT if len(found) == 1 else Path(REPORT)
    )  # fmt: skip
    check(path)
    try:
        page = html(found)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        names = ", ".join(str(one.folder) for one in found)
        raise InputError(f"a record in {names} is incomplete ({error!r}): restore it") from None
    write(path, page)
    return path


def check(path: Path) -> None:
    """Raise InputError if a file that is no report of ours is at the path, or no folder for it."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"the report's folder {path.absolute().parent} does not exist: create it")
    if path.exists() and GENERATOR.encode() not in path.read_bytes()[:HEAD]:
        raise InputError(f"{path} exists and is not a report: choose another file with --out")


def write(path: Path, page: str) -> None:
    """Write a file, in place of an earlier one, whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(page, encoding="utf-8", errors="replace")
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def attempt(path: Path, make: Callable[[], str], say: Callable[[str], None], folder: Path) -> None:
    """Write a page if possible: a run never fails because of its report.

    say: called with one line if it fails. folder: what to name in that line.
    """
    try:
        write(path, make())
    except Exception as error:  # whatever it is, the weights are more than their report
        why = getattr(error, "strerror", None) or repr(error)
        say(f"no report was written ({why}); to make it, run icp-jax report {folder}")
