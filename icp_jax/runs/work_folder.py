"""The work folder of a run, with its finished blocks.

For an output folder OUT it is `.OUT.partial`, in the same parent folder:

    lock               held by the running process; released by the system when it ends
    fingerprint.json   everything the result depends on: settings, source, tokens, versions
    block-00003/       Orbax checkpoint of pruned block 3 and its grids
    block-00003.json   its report and a checksum over both; written last, seals the block
    epoch-00001/       Orbax checkpoint of the global pass after its epoch 1
    epoch-00001.json   a checksum over it; written last, seals the epoch
    export/            the output while it is written; renamed to OUT at the end
    published.json     written just before the rename; without export/, the run is complete
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
NEW = ".new"  # suffix of a file while it is written
EMPTY = "is empty"
MARK = "version of python"  # a key of every fingerprint
FILES = re.compile(r"(fingerprint|published|(block|epoch)-\d{5,})\.(json|new)|lock")
FOLDERS = re.compile(r"export|(block|epoch)-\d{5,}(\.orbax-checkpoint-tmp.*)?")


class WorkFolder:
    """The work folder of the output `out`: its paths, its lock, and its removal."""

    def __init__(self, out: Path):
        self.out = out
        self.path = out.parent / f".{out.name}.partial"
        self.export = self.path / EXPORT

    def block(self, t: int) -> Path:
        """The checkpoint of block t."""
        return self.path / f"block-{t:05d}"

    def manifest(self, t: int) -> Path:
        """The file that seals block t."""
        return self.path / f"block-{t:05d}.json"

    def epoch(self, k: int) -> Path:
        """The checkpoint of the global pass after epoch k, from 1."""
        return self.path / f"epoch-{k:05d}"

    def epoch_manifest(self, k: int) -> Path:
        """The file that seals epoch k."""
        return self.path / f"epoch-{k:05d}.json"

    def last_epoch(self) -> int:
        """The last sealed epoch; 0 without any."""
        sealed = self.path.glob("epoch-*.json")
        return max((int(path.stem.removeprefix("epoch-")) for path in sealed), default=0)

    def acquire(self) -> filelock.BaseFileLock:
        """Create the folder if needed and lock it.

        Raises InputError if another run holds the lock, or if it is not the work folder of a run.
        """
        for _ in range(10):  # a previous run may be removing the folder
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
        raise InputError(
            f"another run is writing to {self.out}: choose another output folder, or wait"
        )

    def _make(self) -> bool:
        """Create the folder; returns whether it exists. Raises InputError if it is not a run's."""
        try:
            self.path.mkdir()
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if self._strange() == EMPTY:
                    time.sleep(0.1)  # another run may be about to lock it
                if strange := self._strange():
                    raise InputError(
                        f"{self.path} is not the work folder of a run: it {strange}; "
                        "move it away, or choose another output folder"
                    ) from None
                return True
            return False
        return True

    def _strange(self) -> str:
        """Why this is not the work folder of a run; empty if it is one."""
        if self.path.is_symlink() or not self.path.is_dir():
            return "is a link or a file"
        there = sorted(path.name for path in self.path.iterdir())
        for name in there:
            if not _of_a_run(self.path / name):
                return f"has {shown(name)}, which no run writes"
        # the fingerprint is written first and removed last
        if set(there) - {LOCK, Path(FINGERPRINT).with_suffix(NEW).name} and not self.began():
            return f"has no {FINGERPRINT} of a run"
        return "" if there else EMPTY

    def began(self) -> dict[str, Any]:
        """The fingerprint of the run that wrote the blocks; empty if it cannot be read."""
        try:
            found = json.loads((self.path / FINGERPRINT).read_text())
        except (OSError, ValueError):
            found = {}
        return found if isinstance(found, dict) and MARK in found else {}

    def count(self) -> int:
        """Number of finished blocks; 0 after the output was published."""
        if (self.path / PUBLISHED).is_file() and not self.export.is_dir():
            return 0
        t = 0
        while (self.path / FINGERPRINT).is_file() and self.manifest(t).is_file():
            t += 1
        return t

    def write(self, path: Path, record: dict[str, Any]) -> None:
        """Write a JSON file into the folder atomically."""
        aside = path.with_suffix(NEW)
        write_json(aside, record)
        sync(aside)
        os.replace(aside, path)
        sync(self.path, deep=False)

    def sweep(self, whole: int, epoch: int = 0) -> None:
        """Remove everything that runs write, except the first `whole` blocks and an epoch."""
        names = {LOCK, FINGERPRINT} if whole else {LOCK}
        for t in range(whole):
            names |= {self.block(t).name, self.manifest(t).name}
        if epoch:
            names |= {self.epoch(epoch).name, self.epoch_manifest(epoch).name}
        self._remove_but(names)

    def sweep_epochs(self, epoch: int) -> None:
        """Remove all epochs but this one."""
        mine = {self.epoch(epoch).name, self.epoch_manifest(epoch).name}
        others = {path.name for path in self.path.iterdir() if not path.name.startswith("epoch-")}
        self._remove_but(others | mine)

    def _remove_but(self, names: set[str]) -> None:
        # manifests first, which unseals their blocks; `published.json` before `export`
        for path in sorted(self.path.iterdir(), key=lambda p: p.suffix != ".json"):
            if path.name not in names and _of_a_run(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove(self) -> None:
        """Remove everything that runs write, and the folder if it is then empty.

        Manifests go first and the fingerprint last, so that an interrupted removal leaves a valid
        work folder without finished blocks.
        """
        last = (PUBLISHED, FINGERPRINT, LOCK)

        def order(path: Path) -> tuple[bool, bool, int, str]:
            late = path.name in last
            place = last.index(path.name) if late else 0
            return late, path.suffix != ".json", place, path.name

        for path in sorted(filter(_of_a_run, self.path.iterdir()), key=order):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        with contextlib.suppress(OSError):  # it still has a file of the user
            self.path.rmdir()

    def remove_leftover(self) -> None:
        """Remove the work folder of a run that ended after publishing its output."""
        if not self.path.exists() or self._strange():
            return
        lock = filelock.FileLock(self.path / LOCK, timeout=0)
        with contextlib.suppress(OSError), lock:  # locked by a run, or not removable
            if not self.count():
                self.remove()


def _of_a_run(path: Path) -> bool:
    """Whether a run may have written this path into its work folder."""
    if path.is_symlink():
        return False
    return bool((FOLDERS if path.is_dir() else FILES).fullmatch(path.name))
