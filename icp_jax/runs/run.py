"""Run from folder to folder: load, calibrate, prune, export, verify, record."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from converters.files import RECORD as RECORD
from converters.files import check_other_files
from icp_jax.checks import flat
from icp_jax.config import RunConfig, check
from icp_jax.core.hyper import by_name
from icp_jax.core.outcomes import BlockReport
from icp_jax.data.hub import resolve
from icp_jax.phases import CHECK, PUBLISH, Progress, Shares
from icp_jax.runs import global_pass
from icp_jax.runs.door import ready
from icp_jax.runs.dry_run import DryRun as DryRun
from icp_jax.runs.dry_run import dry_run as dry_run
from icp_jax.runs.fingerprint import Weights
from icp_jax.runs.finish import export, linear_sizes, record
from icp_jax.runs.follow import follow as follow
from icp_jax.runs.records import block_record
from icp_jax.runs.resume import Say, Work, log
from icp_jax.runs.telling import Telling
from icp_jax.runs.verify_export import Counted, verify_export
from icp_jax.streaming import mesh
from icp_jax.streaming.job import Finished, Hooks, Job
from icp_jax.streaming.loop import prune_blocks
from icp_jax.streaming.source import FolderSource


@dataclasses.dataclass(frozen=True)
class Pruned:
    """The result of a run."""

    out: Path
    sparsity: float  # counted in the exported files
    seconds: float  # of the whole run, including interrupted parts
    blocks: list[BlockReport]
    peak_host_mib: int = 0
    peak_device_mib: int | None = None  # None if the device is the host
    kind: str = "text"  # kind of model: text or vision
    pruned_sparsity: float | None = None  # of the layers that were not left; None: all were pruned
    global_pass: dict[str, Any] | None = None  # its losses, see the record; None: there was none


def prune_folder(
    config: RunConfig,
    progress: Progress = lambda block, phase, done, total, loss: None,
    *,
    resume: bool = False,
    keep: bool = True,
    say: Say = log.warning,
    expect: Callable[[Shares], None] = lambda shares: None,
    report_text: str = "",
    track: str = "",
) -> Pruned:
    """Prune config.model into the folder config.out, which is complete or absent.

    progress: called with (block, phase, done, total, loss). resume: continue an interrupted run
    after its last finished block; the result is that of an uninterrupted run (bit-identical on
    CPU). Without one, start from the beginning. keep: keep finished blocks if interrupted.
    say: called with one line on what is resumed. expect: called before the first block with the
    fraction of the run that each (block, phase) takes. report_text: a prompt; the report shows
    what both models write after it. track: jsonl, tensorboard, wandb, mlflow, or several with
    commas between. Neither changes the result.
    Raises InputError or ConversionError for bad input, if possible before anything is written, and
    Kept if the work folder of another run is in the way.
    """
    started = time.perf_counter()
    config = check(config)
    devices = mesh.choose(config.devices)
    with (
        Telling(report_text, track, say) as telling,
        Work(config.out, resume, keep, say) as work,
        closing(FolderSource(resolve(config.model))) as source,
    ):
        check_other_files(source.folder)
        run = ready(config, source, devices, progress, work.as_begun)
        expect(run.shares)
        job, weights = run.job, run.weights
        source.check_finite()
        finished = work.open(run.fingerprint)
        devices.tell([block_record(block.report) for block in finished])
        for line in run.facts["warnings"]:
            say(line)
        telling.begin(flat(config), source, work.out, bool(finished))
        try:
            last, seal = source.family.n_blocks - 1, _sealing(weights, work, telling)
            hooks = Hooks(progress, seal, finished, work.path)
            blocks = prune_blocks(source, work, run.tokens, job, hooks, devices)
            passed = global_pass.after_blocks(work, source, run, progress)
            export(work, source, job, config.quant.packed, progress, passed)
            tuned = [b.block for b in blocks if passed or b.compensation or b.retune]
            counted = _verified(source, work, job, tuned, partial(_checked, progress, last))
        finally:
            weights.check()  # a changed source explains any other error
        seconds = time.perf_counter() - started + _earlier(finished)
        sizes = linear_sizes(source, counted)
        told = record(run.facts, blocks, counted, sizes, seconds)
        told |= global_pass.record_of(passed, run.config.global_pass, run.tokens)
        telling.write(told, source.folder, work.export, work.out)
        progress(last, PUBLISH.name, 0, 1, None)  # last chance to interrupt the run
        work.publish()
    return _result(work.out, told, seconds, blocks, source.family.kind)


def _sealing(weights: Weights, work: Work, telling: Telling) -> Callable[[BlockReport], None]:
    """What is done with the report of a block that was written."""

    def seal(report: BlockReport) -> None:
        weights.check()
        work.seal(report)
        telling.block(report)

    return seal


def _result(
    out: Path, told: dict[str, Any], seconds: float, blocks: list[BlockReport], kind: str
) -> Pruned:
    peaks, passed = (told["peak_host_mib"], told["peak_device_mib"]), told.get("global_pass")
    return Pruned(
        out, told["sparsity"], seconds, blocks, *peaks, kind, told["pruned_sparsity"], passed
    )


def _earlier(finished: Sequence[Finished]) -> float:
    """Seconds that an interrupted run spent on its blocks."""
    return sum(sum(block.report.seconds.values()) for block in finished)


def _verified(
    source: FolderSource, work: Work, job: Job, tuned: list[int], tick: Callable[[int, int], None]
) -> Counted:
    first = min(tuned, default=source.family.n_blocks)
    zeros = by_name(source.family, job.hyper.counts)
    return verify_export(source, work.export, zeros, job.recipe.pattern, first, tick)


def _checked(progress: Progress, last: int, done: int, total: int) -> None:
    progress(last, CHECK.name, done, total, None)
