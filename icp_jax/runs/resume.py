"""What a run has finished, block by block, so that a run that died can go on.

Beside the output folder OUT lies `.OUT.partial` for as long as there is something to go on with:

    lock               held by the run at work; the system lets go of it when the run dies
    fingerprint.json   what the result hangs on: settings, source, tokens, versions
    block-00003/       an Orbax checkpoint of pruned block 3, and its grids
    block-00003.json   its report, and a checksum over both; written last: it makes the block whole
    export/            the output while it is being written; renamed to OUT at the end
    published.json     written just before that: with it and without export/ the run is over
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import filelock

from converters.names import shown
from icp_jax.config import RunConfig
from icp_jax.core.outcomes import BlockReport
from icp_jax.core.passes import Params
from icp_jax.core.quantize import Grid
from icp_jax.errors import InputError, Kept
from icp_jax.runs.export import check_free, sync, write_json
from icp_jax.runs.records import block_record, canonical, read_block, sha256
from icp_jax.runs.trees import read_tree, save_tree
from icp_jax.streaming.layout import apart, together
from icp_jax.streaming.loop import Finished

LOCK, FINGERPRINT, EXPORT, PUBLISHED = "lock", "fingerprint.json", "export", "published.json"
NEW = ".new"  # the end of a file's name until it is whole
EMPTY = "is empty"
MARK = "version of python"  # what every fingerprint has
Say = Callable[[str], None]
log = logging.getLogger("icp_jax")


class Work:
    """The work folder of a run: a context manager, and a sink for pruned blocks.

    Left with an error it stays, if whole blocks are in it: the error then carries a note that
    says so. Else nothing is left, but for files that no run writes.
    resume: go on with what is there. keep: whether to leave anything after an error.
    Entering raises InputError where `out` exists, another run is at work on it, or something that
    is no run's lies in its place, and Kept where blocks of a dead run lie there and `resume` was
    not asked for.
    """

    def __init__(
        self, out: str | Path, resume: bool = False, keep: bool = True, say: Say = log.warning
    ):
        self.given = out
        self.out = Path(out).expanduser().absolute()
        self.path = self.out.parent / f".{self.out.name}.partial"
        self.export = self.path / EXPORT
        self.resume, self.keep, self.say = resume, keep, say
        self.whole = 0  # blocks 0 .. whole-1 are finished
        self._opened = self._published = False

    def __enter__(self) -> Work:
        try:
            check_free(self.given)
        except InputError:
            with contextlib.suppress(OSError):  # a name that is too long, above all
                self._remove_leftover()
            raise
        self._lock = self._acquire()
        self.whole = self._count()
        if self.whole and not self.resume:
            self._lock.release()
            raise Kept(
                f"{self.path} holds {self.whole} finished blocks of an interrupted run: "
                "add --resume to go on, or delete that folder"
            )
        return self

    def _acquire(self) -> filelock.BaseFileLock:
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
        """What shows that the folder is no run's; nothing of a run's."""
        if self.path.is_symlink() or not self.path.is_dir():
            return "is a link or a file"
        there = sorted(path.name for path in self.path.iterdir())
        for name in there:
            if not _of_a_run(self.path / name):
                return f"holds {shown(name)}, which no run writes"
        # the fingerprint is the first thing to be written, and the last to be removed
        if set(there) - {LOCK, Path(FINGERPRINT).with_suffix(NEW).name} and not self._began():
            return f"has no {FINGERPRINT} that a run wrote"
        return "" if there else EMPTY

    def _manifest(self, t: int) -> Path:
        return self.path / f"block-{t:05d}.json"

    def _block(self, t: int) -> Path:
        return self.path / f"block-{t:05d}"

    def _remove_leftover(self) -> None:
        """Remove what a run left that died when its output had its name already."""
        if not self.path.exists() or self._strange():
            return  # nothing there, or not a run's
        lock = filelock.FileLock(self.path / LOCK, timeout=0)
        with contextlib.suppress(OSError), lock:  # a run is at work, or nothing may be removed
            if not self._count():
                self._remove()

    def _count(self) -> int:
        """Blocks to go on from; none once the output has its name."""
        if (self.path / PUBLISHED).is_file() and not self.export.is_dir():
            return 0
        t = 0
        while (self.path / FINGERPRINT).is_file() and self._manifest(t).is_file():
            t += 1
        return t

    # ------------------------------------------------------------ what an earlier run finished

    def as_begun(self, config: RunConfig) -> RunConfig:
        """`config`, with the batch and the rematerialisation that the run was begun with where it
        leaves them open.

        They go by the memory that is free, and roundings depend on them.
        """
        memory, began = config.memory, self._began() if self.whole else {}
        if memory.batch_tokens is None:
            memory = dataclasses.replace(memory, batch_tokens=began.get("memory.batch_tokens"))
        if memory.remat is None:
            memory = dataclasses.replace(memory, remat=began.get("memory.remat"))
        return dataclasses.replace(config, memory=memory)

    def open(self, fingerprint: dict[str, Any]) -> Sequence[Finished]:
        """The blocks to go on from, each with its checksum proven; what is broken is removed.

        Raises Kept where the fingerprint is not that of the run that wrote them.
        """
        if self.whole:
            self._compare(fingerprint)
        elif self.resume:
            self.say("nothing to resume: starting from the beginning")
        self._opened = True
        finished = []
        for t in range(self.whole):
            report = self._intact(t)
            if report is None:
                so = f"after block {t - 1}" if t else "from the beginning"
                self.say(f"the checkpoint of block {t} is damaged: going on {so}")
                break
            finished.append(Finished(report, partial(self._params, t)))
        self.whole = len(finished)
        if finished:
            self.say(f"going on after block {self.whole - 1}")
        self._sweep()
        if not finished:
            self._write(self.path / FINGERPRINT, fingerprint)
        return finished

    def _compare(self, fingerprint: dict[str, Any]) -> None:
        from icp_jax.runs.fingerprint import differences

        # through JSON, as the old one went
        if said := differences(self._began(), json.loads(canonical(fingerprint))):
            raise Kept(
                f"cannot go on with {self.path}: {said}; give what the run was begun with, "
                "or delete that folder"
            )

    def _began(self) -> dict[str, Any]:
        """The fingerprint of the run that wrote the blocks; empty where it cannot be read."""
        try:
            found = json.loads((self.path / FINGERPRINT).read_text())
        except (OSError, ValueError):
            found = {}
        return found if isinstance(found, dict) and MARK in found else {}

    def _intact(self, t: int) -> BlockReport | None:
        try:
            manifest = json.loads(self._manifest(t).read_text())
            if manifest["sha256"] == self._checksum(t, manifest["report"]):
                return read_block(manifest["report"])
        except (ValueError, TypeError, KeyError, FileNotFoundError):
            return None
        return None

    def _checksum(self, t: int, report: dict[str, Any]) -> str:
        parts: list[bytes | Path] = []
        for path in sorted(p for p in self._block(t).rglob("*") if p.is_file()):
            name = path.relative_to(self.path)
            parts += [f"{name} {path.stat().st_size}\n".encode(), path]
        return sha256(*parts, canonical(report))

    def _sweep(self) -> None:
        """Remove all that runs write but whole blocks."""
        names = {LOCK, FINGERPRINT} if self.whole else {LOCK}
        for t in range(self.whole):
            names |= {self._block(t).name, self._manifest(t).name}
        # manifests first: without one a block is not whole; and the mark of a published output
        # before the output
        for path in sorted(self.path.iterdir(), key=lambda p: p.suffix != ".json"):
            if path.name not in names and _of_a_run(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _remove(self) -> None:
        """Remove the folder, but keep it where it holds what no run writes.

        Blocks lose their manifests first and the fingerprint goes last, so that what is left of a
        removal that was cut off is a run's, and holds nothing to go on with.
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

    def proven(self, t: int) -> tuple[Params, dict[str, Grid]]:
        """`read`, its checksum first. Raises Kept for a block that is not as it was written."""
        if self._intact(t) is None:
            raise Kept(f"the checkpoint of block {t} is damaged: --resume prunes it again")
        return self.read(t)

    def read(self, t: int) -> tuple[Params, dict[str, Grid]]:
        """A finished block in the dtypes of the source, and its grids by linear."""
        tree = read_tree(self._block(t))
        params = together(tree["params"], tree.get("turned", {}))
        return params, {name: Grid(**grid) for name, grid in tree["grids"].items()}

    def _params(self, t: int) -> Params:
        return self.read(t)[0]

    # ------------------------------------------------------------ the sink

    def write(self, t: int, params: Params, grids: Mapping[str, Grid]) -> None:
        """Store a pruned block."""
        by_name = {name: grid._asdict() for name, grid in grids.items()}
        plain, turned = apart(params)
        save_tree(self._block(t), {"params": plain, "turned": turned, "grids": by_name})

    def seal(self, report: BlockReport) -> None:
        """Make the block whole that was written last."""
        record = block_record(report)
        sync(self._block(report.block))
        manifest = {"report": record, "sha256": self._checksum(report.block, record)}
        self._write(self._manifest(report.block), manifest)
        self.whole = report.block + 1

    def _write(self, path: Path, record: dict[str, Any]) -> None:
        """A JSON file that appears whole."""
        aside = path.with_suffix(NEW)
        write_json(aside, record)
        sync(aside)
        os.replace(aside, path)
        sync(self.path, deep=False)

    # ------------------------------------------------------------ the end

    def publish(self) -> None:
        """Give `export` its name. Raises Kept where something has taken it meanwhile."""
        sync(self.export)
        if self.out.exists():
            raise Kept(f"{self.out} has appeared meanwhile: move it away")
        self._write(self.path / PUBLISHED, {})
        os.rename(self.export, self.out)
        sync(self.out.parent, deep=False)
        self._published = True

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if not self._stays():
                self._remove()
            elif self._opened and error is not None:
                self._sweep()
                error.add_note(f"after block {self.whole - 1}; go on with --resume")
        finally:
            self._lock.release()

    def _stays(self) -> bool:
        if self._published or not self.whole:
            return False
        # not opened: another's work, which this run was not fit to go on with
        return self.keep or not self._opened


FILES = re.compile(r"(fingerprint|published|block-\d{5,})\.(json|new)|lock")
FOLDERS = re.compile(r"export|block-\d{5,}(\.orbax-checkpoint-tmp.*)?")


def _of_a_run(path: Path) -> bool:
    """Whether runs write something of this name and kind into their work folder."""
    if path.is_symlink():
        return False
    return bool((FOLDERS if path.is_dir() else FILES).fullmatch(path.name))
