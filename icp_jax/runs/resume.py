"""Resume an interrupted run after its last finished block.

`work_folder` has the layout of the work folder, `checkpoints` the format of a block in it.
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

from icp_jax.config import MemoryConfig
from icp_jax.core.outcomes import BlockReport
from icp_jax.core.passes import Params
from icp_jax.core.quantize import Grid
from icp_jax.errors import InputError, Kept
from icp_jax.runs.checkpoints import Checkpoints
from icp_jax.runs.epochs import EpochCheckpoints
from icp_jax.runs.export import check_free, sync
from icp_jax.runs.fingerprint import differences
from icp_jax.runs.records import canonical
from icp_jax.runs.work_folder import FINGERPRINT, PUBLISHED, WorkFolder
from icp_jax.streaming.job import Finished

Say = Callable[[str], None]
log = logging.getLogger("icp_jax")


class Work:
    """The work folder of a run: a context manager and a sink for pruned blocks.

    On an error, the folder stays if it has finished blocks, and the error gets a note on how to
    resume. Otherwise it is removed, except for files that runs do not write.
    resume: continue from the finished blocks. keep: keep finished blocks after an error.
    Entering raises InputError if `out` exists, another run writes to it, or the work folder is not
    a run's; and Kept if it has finished blocks and `resume` is false.
    """

    def __init__(
        self, out: str | Path, resume: bool = False, keep: bool = True, say: Say = log.warning
    ):
        self.given = out
        self.out = Path(out).expanduser().absolute()
        self.folder = WorkFolder(self.out)
        self.path, self.export = self.folder.path, self.folder.export
        self.blocks, self.epochs = Checkpoints(self.folder), EpochCheckpoints(self.folder)
        self.resume, self.keep, self.say = resume, keep, say
        self.whole = 0  # blocks 0 .. whole-1 are finished
        self._opened = self._published = False

    def __enter__(self) -> Work:
        try:
            check_free(self.given)
        except InputError:
            with contextlib.suppress(OSError):  # such as a name that is too long
                self.folder.remove_leftover()
            raise
        self._lock = self.folder.acquire()
        self.whole = self.folder.count()
        if self.whole and not self.resume:
            self._lock.release()
            raise Kept(
                f"{self.path} holds {self.whole} finished blocks of an interrupted run: "
                "add --resume to continue it, or delete that folder"
            )
        return self

    # ------------------------------------------------------------ finished blocks

    def as_begun(self, memory: MemoryConfig) -> MemoryConfig:
        """Fill in an unset batch size and remat from the interrupted run.

        Their defaults depend on the free memory, and rounding depends on them.
        """
        began = self.folder.began() if self.whole else {}
        if memory.batch_tokens is None:
            memory = dataclasses.replace(memory, batch_tokens=began.get("memory.batch_tokens"))
        if memory.remat is None:
            memory = dataclasses.replace(memory, remat=began.get("memory.remat"))
        return memory

    def open(self, fingerprint: dict[str, Any]) -> Sequence[Finished]:
        """The finished blocks with valid checksums; all blocks from the first invalid one go.

        Raises Kept if the fingerprint differs from that of the run that wrote them.
        """
        if self.whole:
            self._compare(fingerprint)
        elif self.resume:
            self.say("no interrupted run found: starting from the beginning")
        self._opened = True
        finished = []
        for t in range(self.whole):
            report = self.blocks.intact(t)
            if report is None:
                so = f"resuming after block {t - 1}" if t else "starting from the beginning"
                self.say(f"the checkpoint of block {t} is damaged: {so}")
                break
            finished.append(Finished(report, partial(self.blocks.params, t)))
        intact = len(finished) == self.whole
        self.whole = len(finished)
        if finished:
            self.say(f"resuming after block {self.whole - 1}")
        # an epoch is of all blocks as they were
        self.folder.sweep(self.whole, self.folder.last_epoch() if intact else 0)
        if not finished:
            self.folder.write(self.path / FINGERPRINT, fingerprint)
        return finished

    def _compare(self, fingerprint: dict[str, Any]) -> None:
        # compare JSON values, since the old fingerprint was read from JSON
        if said := differences(self.folder.began(), json.loads(canonical(fingerprint))):
            raise Kept(
                f"cannot resume {self.path}: {said}; use the run's original settings, "
                "or delete that folder"
            )

    # ------------------------------------------------------------ the sink

    def write(self, t: int, params: Params, grids: Mapping[str, Grid]) -> None:
        """Write a pruned block."""
        self.blocks.write(t, params, grids)

    def seal(self, report: BlockReport) -> None:
        """Seal the last written block: it counts as finished."""
        self.blocks.seal(report)
        self.whole = report.block + 1

    def proven(self, t: int) -> tuple[Params, dict[str, Grid]]:
        """Read a block and its grids. Raises Kept if the checksum does not match."""
        if self.blocks.intact(t) is None:
            raise Kept(f"the checkpoint of block {t} is damaged: --resume prunes it again")
        return self.blocks.read(t)

    # ------------------------------------------------------------ publishing

    def publish(self) -> None:
        """Rename `export` to the output folder. Raises Kept if that exists meanwhile."""
        sync(self.export)
        if self.out.exists():
            raise Kept(f"{self.out} was created meanwhile: move it away")
        self.folder.write(self.path / PUBLISHED, {})
        os.rename(self.export, self.out)
        sync(self.out.parent, deep=False)
        self._published = True

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if not self._stays():
                self.folder.remove()
            elif self._opened and error is not None:
                epoch = self.folder.last_epoch()
                self.folder.sweep(self.whole, epoch)
                after = f"epoch {epoch} of the global pass" if epoch else f"block {self.whole - 1}"
                error.add_note(f"after {after}; continue with --resume")
        finally:
            self._lock.release()

    def _stays(self) -> bool:
        if self._published or not self.whole:
            return False
        # not opened: the blocks of another run, which this one could not resume
        return self.keep or not self._opened
