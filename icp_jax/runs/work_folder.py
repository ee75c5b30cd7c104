"""The folder beside the output in which a run keeps what it has finished.

Beside the output folder OUT lies `.OUT.partial` for as long as there is something to go on with:

    lock               held by the run at work; the system lets go of it when the run dies
    fingerprint.json   what the result depends on: settings, source, tokens, versions
    block-00003/       an Orbax checkpoint of pruned block 3, and its grids
    block-00003.json   its report, and a checksum over both; written last: it makes the block whole
    export/            the output while it is being written; renamed to OUT at the end
    published.json     written just before that: with it and without export/ the run is over
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import filelock

from converters.names import shown
from icp_jax.errors import InputError
from icp_jax.runs.export import sync, write_json

LOCK, FINGERPRINT, EXPORT, PUBLISHED = "lock", "fingerprint.json", "export", "published.json"
NEW = ".new"  # the end of a file's name until it is whole
EMPTY = "is empty"
MARK = "version of python"  # what every fingerprint has
FILES = re.compile(r"(fingerprint|published|block-\d{5,})\.(json|new)|lock")
FOLDERS = re.compile(r"export|block-\d{5,}(\.orbax-checkpoint-tmp.*)?")


class WorkFolder:
    """The work folder of the output `out`: its names, its lock, and what may be removed from it."""

    def __init__(self, out: Path):
        self.out = out
        self.path = out.parent / f".{out.name}.partial"
        self.export = self.path / EXPORT

    def block(self, t: int) -> Path:
        """The checkpoint of block t."""
        return self.path / f"block-{t:05d}"

    def manifest(self, t: int) -> Path:
        """The file that makes block t whole."""
        return self.path / f"block-{t:05d}.json"

    def acquire(self) -> filelock.BaseFileLock:
        """Make the folder where it is missing, and lock it.

        Raises InputError where another run holds it, or where it is not a run's.
        """
        for _ in range(10):  # the run before may be removing the folder just now
            if not self._make():
                continue
            lock = filelock.FileLock(self.path / LOCK, timeout=0)
            try:
                lock.acquire()
            except filelock.Timeout:
                break
            except FileNotFoundError:
                continue
            return lock
        raise InputError(f"another run is at work on {self.out}: choose another --out, or wait")

    def _make(self) -> bool:
        """Whether the folder is there now. Raises InputError where it is not a run's."""
        try:
            self.path.mkdir()
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if self._strange() == EMPTY:
                    time.sleep(0.1)  # another run may have made it, and be about to lock it
                if strange := self._strange():
                    raise InputError(
                        f"{self.path} is not the work folder of a run: it {strange}; "
                        "move it away, or choose another --out"
                    ) from None
                return True
            return False
        return True

    def _strange(self) -> str:
        """What shows that the folder is not a run's; empty where nothing does."""
        if self.path.is_symlink() or not self.path.is_dir():
            return "is a link or a file"
        there = sorted(path.name for path in self.path.iterdir())
        for name in there:
            if not _of_a_run(self.path / name):
                return f"holds {shown(name)}, which no run writes"
        # the fingerprint is the first thing to be written, and the last to be removed
        if set(there) - {LOCK, Path(FINGERPRINT).with_suffix(NEW).name} and not self.began():
            return f"has no {FINGERPRINT} that a run wrote"
        return "" if there else EMPTY

    def began(self) -> dict[str, Any]:
        """The fingerprint of the run that wrote the blocks; empty where it cannot be read."""
        try:
            found = json.loads((self.path / FINGERPRINT).read_text())
        except (OSError, ValueError):
            found = {}
        return found if isinstance(found, dict) and MARK in found else {}

    def count(self) -> int:
        """Blocks to go on from; none once the output has its name."""
        if (self.path / PUBLISHED).is_file() and not self.export.is_dir():
            return 0
        t = 0
        while (self.path / FINGERPRINT).is_file() and self.manifest(t).is_file():
            t += 1
        return t

    def write(self, path: Path, record: dict[str, Any]) -> None:
        """Write a JSON file into the folder; it appears whole or not at all."""
        aside = path.with_suffix(NEW)
        write_json(aside, record)
        sync(aside)
        os.replace(aside, path)
        sync(self.path, deep=False)

    def sweep(self, whole: int) -> None:
        """Remove all that runs write, except the first `whole` blocks."""
        names = {LOCK, FINGERPRINT} if whole else {LOCK}
        for t in range(whole):
            names |= {self.block(t).name, self.manifest(t).name}
        # manifests first: without one a block is not whole; and the mark of a published output
        # before the output
        for path in sorted(self.path.iterdir(), key=lambda p: p.suffix != ".json"):
            if path.name not in names and _of_a_run(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove(self) -> None:
        """Remove the folder, but keep it where it holds what no run writes.

        Manifests go before the blocks and the fingerprint goes last. So a removal that was cut
        off leaves a run's folder, with nothing in it to go on with.
        """
        last = (PUBLISHED, FINGERPRINT, LOCK)

        def order(path: Path) -> tuple[bool, bool, int, str]:
            late = path.name in last
            place = last.index(path.name) if late else 0
            return late, path.suffix != ".json", place, path.name

        for path in sorted(filter(_of_a_run, self.path.iterdir()), key=order):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        with contextlib.suppress(OSError):  # something of the user's is in it
            self.path.rmdir()

    def remove_leftover(self) -> None:
        """Remove what a run left that died after its output had got its name."""
        if not self.path.exists() or self._strange():
            return  # nothing there, or not a run's
        lock = filelock.FileLock(self.path / LOCK, timeout=0)
        with contextlib.suppress(OSError), lock:  # a run is at work, or nothing may be removed
            if not self.count():
                self.remove()


def _of_a_run(path: Path) -> bool:
    """Whether runs write something of this name and kind into their work folder."""
    if path.is_symlink():
        return False
    return bool((FOLDERS if path.is_dir() else FILES).fullmatch(path.name))
