"""Read the records of runs, demos and sweeps from their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from converters.files import RECORD
from icp_jax.errors import InputError

DEMO, SWEEP, POINTS = "demo.json", "sweep.json", "points.jsonl"
Record = dict[str, Any]


class Found(NamedTuple):
    """What a folder holds. Demos have their runs, sweeps a record per point."""

    folder: Path
    kind: str  # run, demo or sweep
    record: Record
    rows: Sequence[Record] = ()


def read(folder: str | Path) -> Found:
    """Read a folder. Raises InputError if it is not of a run, a demo or a sweep."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the output of prune, demo or sweep")
    if (folder / RECORD).is_file():
        return Found(folder, "run", _run(folder))
    if (folder / DEMO).is_file():
        record = _object(folder / DEMO)
        rows = _fitting(folder / DEMO, lambda: _runs_of_demo(folder, record))
        if rows:
            return Found(folder, "demo", record, rows)
        raise InputError(f"the demo in {folder} has no finished run: run it again")
    if (folder / POINTS).is_file():
        known = (folder / SWEEP).is_file()
        record = _object(folder / SWEEP) if known else {}
        rows = _points(folder / POINTS)
        if rows:
            return Found(folder, "sweep", record, rows)
        raise InputError(f"{folder / POINTS} has no point yet: wait for the sweep")
    raise InputError(
        f"{folder} has no {RECORD}, {DEMO} or {POINTS}: give the output of prune, demo or sweep"
    )


def _run(folder: Path) -> Record:
    record = _object(folder / RECORD)
    if not isinstance(record.get("blocks"), list) or not isinstance(record.get("config"), dict):
        raise InputError(f"{folder / RECORD} is not the record of a run: restore it")
    if "global_pass" in record and "prune" not in record["config"]:
        raise InputError(
            f"{folder} was distilled from a folder without the record of a run, so it has no "
            "report: give the output of prune, demo or sweep"
        )
    return record


def _runs_of_demo(folder: Path, record: Record) -> list[Record]:
    rows = []
    for told in record["methods"]:
        if (folder / told["method"] / RECORD).is_file():
            rows.append({**_run(folder / told["method"]), "perplexity": told["perplexity"]})
    return rows


def _points(path: Path) -> list[Record]:
    """The points of a sweep; a last line that is half written is left out."""
    lines = _text(path).split("\n")[:-1]
    rows = [_fitting(path, lambda line=line: json.loads(line)) for line in lines if line.strip()]
    if not all(isinstance(row, dict) and isinstance(row.get("settings"), dict) for row in rows):
        raise InputError(f"{path} has a line that is not a point of a sweep: remove that line")
    return rows


def _object(path: Path) -> Record:
    found = _fitting(path, lambda: json.loads(_text(path)))
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a record: restore it")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError:
        raise InputError(f"{path} is not UTF-8 text: restore it") from None


def _fitting(path: Path, read: Any) -> Any:
    try:
        return read()
    except InputError:
        raise
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: restore it") from None
