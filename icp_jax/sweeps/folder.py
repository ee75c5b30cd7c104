"""The folder of a sweep, which holds its records and nothing that cannot be read as text.

sweep.json     what is swept: base, points or space, inputs, versions; the best point at the end
points.jsonl   one line a point, written as soon as the point is known
study.log      the journal of a search
lock, *.lock   held by running processes
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from icp_jax.errors import InputError
from icp_jax.runs.export import check_free, sync, write_json
from icp_jax.runs.fingerprint import differences
from icp_jax.runs.records import canonical

SWEEP, POINTS, STUDY, LOCK, WRITING = (
    "sweep.json",
    "points.jsonl",
    "study.log",
    "lock",
    "write.lock",
)


class SweepFolder:
    """The folder of a sweep. Nothing is written before `begin`.

    Raises InputError if the folder exists and `resume` is false, or is not that of a sweep.
    """

    def __init__(self, out: str | Path, resume: bool = False):
        self.path = Path(out).expanduser().absolute()
        if self.path.exists() and not (self.path / SWEEP).is_file():
            check_free(out)
        if not self.path.exists():
            check_free(out)
        elif not resume:
            raise InputError(
                f"{out} holds {len(self.rows())} points of an earlier sweep: add --resume to "
                "continue it, or choose another folder"
            )
        self._lock: filelock.BaseFileLock | None = None

    def begin(self, facts: Mapping[str, Any], *, alone: bool) -> None:
        """Create the folder, or check that it is of a sweep with the same inputs.

        facts: the content of sweep.json. alone: no other process may work on this sweep.
        Raises InputError.
        """
        began = self.began()
        now = json.loads(canonical(finite(facts)))
        if began and (said := differences(began["inputs"], now["inputs"])):
            raise InputError(
                f"cannot resume {self.path}: {said}; use the original inputs, or another folder"
            )
        self.path.mkdir(exist_ok=True)
        if alone:
            self._lock = filelock.FileLock(self.path / LOCK, timeout=0)
            try:
                self._lock.acquire()
            except filelock.Timeout:
                self._lock = None
                raise InputError(
                    f"another process is running the sweep in {self.path}: wait for it, or choose "
                    "another folder"
                ) from None
        self._write({**began, **now})

    def began(self) -> dict[str, Any]:
        """The content of sweep.json; empty if the sweep has not begun. Raises InputError."""
        path = self.path / SWEEP
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text())
            return {**found, "inputs": dict(found["inputs"])}
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} is not the record of a sweep: remove it") from None

    def finish(self, more: Mapping[str, Any]) -> None:
        """Add to sweep.json."""
        self._write({**self.began(), **finite(more)})

    def _write(self, record: dict[str, Any]) -> None:
        with self._writing():
            aside = self.path / f"{SWEEP}.new"
            write_json(aside, record)
            sync(aside)
            os.replace(aside, self.path / SWEEP)
            sync(self.path, deep=False)

    def _writing(self) -> filelock.BaseFileLock:
        return filelock.FileLock(self.path / WRITING)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append the record of a point, and flush it to disk. Drops a half-written last line."""
        line = json.dumps(finite(row), allow_nan=False).encode() + b"\n"
        path = self.path / POINTS
        with self._writing():
            new = not path.exists()
            with open(path, "ab+") as file:
                file.truncate(_whole(path.read_bytes()))
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync(self.path, deep=False)

    def rows(self) -> list[dict[str, Any]]:
        """The recorded points. Raises InputError for a damaged line that is not the last."""
        path = self.path / POINTS
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
        found = []
        for k, line in enumerate(data[: _whole(data)].splitlines(), 1):
            try:
                row = json.loads(line)
                found.append({**row, "key": str(row["key"])})
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{path}, line {k} is not a point: remove the line") from None
        return found

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            with contextlib.suppress(OSError):
                (self.path / LOCK).unlink()


def _whole(data: bytes) -> int:
    """The length of the data up to the end of the last whole line."""
    return data.rfind(b"\n") + 1


def finite(value: Any) -> Any:
    """A record as JSON values: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
