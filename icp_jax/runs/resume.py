"""A run that died goes on after its last whole block.

`work_folder` says what lies in the work folder, `checkpoints` how a block is stored there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from icp_jax.config import RunConfig
from icp_jax.core.outcomes import BlockReport
from icp_jax.core.passes import Params
from icp_jax.core.quantize import Grid
from icp_jax.errors import InputError, Kept
from icp_jax.runs.checkpoints import Checkpoints
from icp_jax.runs.export import check_free, sync
from icp_jax.runs.fingerprint import differences
from icp_jax.runs.records import canonical
from icp_jax.runs.work_folder import FINGERPRINT, PUBLISHED, WorkFolder
from icp_jax.streaming.loop import Finished

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
        self.folder = WorkFolder(self.out)
        self.path, self.export = self.folder.path, self.folder.export
        self.blocks = Checkpoints(self.folder)
        self.resume, self.keep, self.say = resume, keep, say
        self.whole = 0  # blocks 0 .. whole-1 are finished
        self._opened = self._published = False

    def __enter__(self) -> Work:
        try:
            check_free(self.given)
        except InputError:
            with contextlib.suppress(OSError):  # a name that is too long, above all
                self.folder.remove_leftover()
            raise
        self._lock = self.folder.acquire()
        self.whole = self.folder.count()
        if self.whole and not self.resume:
            self._lock.release()
            raise Kept(
                f"{self.path} holds {self.whole} finished blocks of an interrupted run: "
                "add --resume to go on, or delete that folder"
            )
        return self

    # ------------------------------------------------------------ what an earlier run finished

    def as_begun(self, config: RunConfig) -> RunConfig:
        """`config`, with the batch and the rematerialisation that the run was begun with where it
        leaves them open.

        They depend on the memory that is free, and roundings depend on them.
        """
        memory, began = config.memory, self.folder.began() if self.whole else {}
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
            report = self.blocks.intact(t)
            if report is None:
                so = f"after block {t - 1}" if t else "from the beginning"
                self.say(f"the checkpoint of block {t} is damaged: going on {so}")
                break
            finished.append(Finished(report, partial(self.blocks.params, t)))
        self.whole = len(finished)
        if finished:
            self.say(f"going on after block {self.whole - 1}")
        self.folder.sweep(self.whole)
        if not finished:
            self.folder.write(self.path / FINGERPRINT, fingerprint)
        return finished

    def _compare(self, fingerprint: dict[str, Any]) -> None:
        # through JSON, as the old one went
        if said := differences(self.folder.began(), json.loads(canonical(fingerprint))):
            raise Kept(
                f"cannot go on with {self.path}: {said}; give what the run was begun with, "
                "or delete that folder"
            )

    # ------------------------------------------------------------ the sink

    def write(self, t: int, params: Params, grids: Mapping[str, Grid]) -> None:
        """Store a pruned block."""
        self.blocks.write(t, params, grids)

    def seal(self, report: BlockReport) -> None:
        """Make the block whole that was written last."""
        self.blocks.seal(report)
        self.whole = report.block + 1

    def proven(self, t: int) -> tuple[Params, dict[str, Grid]]:
        """A block and its grids, after a look at its checksum.

        Raises Kept for a block that is not as it was written.
        """
        if self.blocks.intact(t) is None:
            raise Kept(f"the checkpoint of block {t} is damaged: --resume prunes it again")
        return self.blocks.read(t)

    # ------------------------------------------------------------ the end

    def publish(self) -> None:
        """Give `export` its name. Raises Kept where something has taken it meanwhile."""
        sync(self.export)
        if self.out.exists():
            raise Kept(f"{self.out} has appeared meanwhile: move it away")
        self.folder.write(self.path / PUBLISHED, {})
        os.rename(self.export, self.out)
        sync(self.out.parent, deep=False)
        self._published = True

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if not self._stays():
                self.folder.remove()
            elif self._opened and error is not None:
                self.folder.sweep(self.whole)
                error.add_note(f"after block {self.whole - 1}; go on with --resume")
        finally:
            self._lock.release()

    def _stays(self) -> bool:
        if self._published or not self.whole:
            return False
        # not opened: another's work, which this run was not fit to go on with
        return self.keep or not self._opened
