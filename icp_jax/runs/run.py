"""One run from folder to folder: load, calibrate, prune, export, check, record."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax

from converters.files import RECORD, check_other_files
from icp_jax.config import RunConfig, check
from icp_jax.core.masks import parse_pattern
from icp_jax.core.outcomes import BlockReport, remedies
from icp_jax.core.passes import Params
from icp_jax.data import inputs
from icp_jax.data.hub import resolve
from icp_jax.errors import InputError, Kept
from icp_jax.phases import CHECK, EXPORT, PUBLISH
from icp_jax.planning import cost
from icp_jax.planning.budgets import budgets
from icp_jax.planning.plan import settle
from icp_jax.planning.workload import describe, resolved, size, workload
from icp_jax.runs.export import FolderSink, check_free, write_json
from icp_jax.runs.fingerprint import Weights, common, fingerprint
from icp_jax.runs.job import job
from icp_jax.runs.packed import PackedSink
from icp_jax.runs.records import block_record, peak_mib, read_block, versions
from icp_jax.runs.resume import Say, Work, log
from icp_jax.runs.verify import Counted, verify_export
from icp_jax.streaming import mesh, storage
from icp_jax.streaming.loop import Finished, Hooks, Progress, prune_blocks
from icp_jax.streaming.source import FolderSource


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A finished run. sparsity: counted in the exported files; seconds: the whole run."""

    out: Path
    sparsity: float
    seconds: float
    blocks: list[BlockReport]


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What a run would do, and an estimate of what it costs."""

    model: str
    method: str
    samples: int
    seq_len: int  # tokens of a window, or patches of an image
    layers: list[dict[str, Any]]  # block, layer, role, inputs, outputs, zeros, sparsity
    zeros: int
    size: int
    flops: float  # matrix products
    stream_bytes: int  # both streams
    block_bytes: int  # the largest block's float32 params, on the device
    kind: str = "text"  # what a sample is: text, or vision


def dry_run(config: RunConfig) -> DryRun:
    """Everything that can be known before the run: targets, counts, cost.

    Touches nothing; of a hub id only the config is fetched.
    """
    config = check(config)
    if config.out:
        check_free(config.out)
    source = describe(config.model)
    full = resolved(config, source)
    work = workload(source, full)
    family, shapes, n = work.family, work.shapes, full.calibration.count
    t = family.positions(full.calibration.seq_len)
    roles = {spec.name: spec.role for spec in family.linears}
    layers: list[dict[str, Any]] = []
    for b, block in enumerate(budgets(family, shapes, config.prune, config.quant)):
        for name, zeros in block.items():
            i, o = shapes[b][name]
            layers.append(
                {
                    "block": b,
                    "layer": name,
                    "role": roles[name],
                    "inputs": i,
                    "outputs": o,
                    "zeros": zeros,
                    "sparsity": zeros / (i * o),
                }
            )
    return DryRun(
        model=config.model,
        method=full.prune.method,
        samples=n,
        seq_len=t,
        layers=layers,
        zeros=sum(row["zeros"] for row in layers),
        size=sum(row["inputs"] * row["outputs"] for row in layers),
        flops=sum(cost.flops(family, shapes, full, t).values()),
        stream_bytes=2 * n * size(work.hidden(full.memory.stream_dtype)),
        block_bytes=max(sum(4 * i * o for i, o in block.values()) for block in shapes),
        kind=family.kind,
    )


def prune_folder(
    config: RunConfig,
    progress: Progress = lambda block, phase, done, total, loss: None,
    *,
    resume: bool = False,
    keep: bool = True,
    say: Say = log.warning,
) -> Pruned:
    """Prune config.model into the folder config.out, which appears whole or not at all.

    resume: go on from the last whole block of a run that died, with the result it would have had
    (on the CPU bit for bit); start from the beginning where there is none. keep: leave finished
    blocks in the work folder when the run is cut off. say: told in one line what a resumed run
    found.
    Raises InputError or ConversionError for bad input, before anything is written where that can
    be known; Kept where a work folder is there that does not fit the request.
    """
    started = time.perf_counter()
    config = check(config)
    devices = mesh.choose(config.devices)
    with (
        Work(config.out, resume, keep, say) as work,
        closing(FolderSource(resolve(config.model))) as source,
    ):
        full, counts = _checked(source, config)
        tokens = inputs.calibration(config.calibration, source, progress)
        full = inputs.counted(full, tokens)
        asked, full = full, _settled(source, work, full)
        weights = Weights(source)
        devices.check_same("settings, weights or versions", common(asked, weights))
        source.check_finite()
        samples = inputs.record(source, tokens)
        finished = work.open(fingerprint(full, weights, samples))
        devices.tell([block_record(block.report) for block in finished])

        def seal(report: BlockReport) -> None:
            weights.check()
            work.seal(report)

        try:
            hooks = Hooks(progress, seal, finished, scratch=work.path)
            blocks = prune_blocks(source, work, tokens, job(source, full), hooks, devices)
            counted = _export(work, source, config, counts, blocks, progress)
        finally:
            weights.check()  # whatever is wrong may come of a source that has changed
        seconds = time.perf_counter() - started
        seconds += sum(sum(block.report.seconds.values()) for block in finished)
        record = _record(full, weights, samples, blocks, counted, seconds)
        write_json(work.export / RECORD, record)
        progress(len(blocks) - 1, PUBLISH.name, 0, 1, None)  # the last call that may raise
        work.publish()
    return Pruned(work.out, counted.sparsity, seconds, blocks)


def _checked(source: FolderSource, config: RunConfig) -> tuple[RunConfig, list[dict[str, int]]]:
    """The resolved settings, and the zeros of every linear. Raises InputError."""
    check_other_files(source.folder)
    full = resolved(config, source)
    shapes = [source.shapes(t) for t in range(source.family.n_blocks)]
    counts = budgets(source.family, shapes, config.prune, config.quant)
    if config.quant.packed and source.family.kind == "vision":
        raise InputError("quant.packed is for language models: leave it out")
    return full, counts


def _settled(source: FolderSource, work: Work, full: RunConfig) -> RunConfig:
    """`settle`, with what a run that is taken up again was begun with. Raises InputError."""
    begun = work.as_begun(full)
    try:
        return settle(source, begun)
    except InputError as error:
        if begun == full:
            raise
        kept = "going on keeps the batch and rematerialisation that the run was begun with"
        raise Kept(f"{error}; {kept}") from None


def follow(config: RunConfig) -> None:
    """What every process but the first does of `prune_folder`: the same work, and no files."""
    config = check(config)
    devices = mesh.choose(config.devices)
    with closing(FolderSource(resolve(config.model))) as source:
        full = resolved(config, source)
        tokens = inputs.calibration(config.calibration, source)
        full = inputs.counted(full, tokens)
        asked, full = full, settle(source, full)
        devices.check_same("settings, weights or versions", common(asked, Weights(source)))
        reports = [read_block(record) for record in devices.tell([])]
        # the first process has those blocks; what is read here only has their shapes
        finished = [Finished(report, partial(source.block, report.block)) for report in reports]
        prune_blocks(
            source, Nowhere(), tokens, job(source, full), Hooks(finished=finished), devices
        )


class Nowhere:
    """A sink that keeps nothing."""

    def write(self, t: int, params: Params, grids: Any) -> None: ...


def _export(
    work: Work,
    source: FolderSource,
    config: RunConfig,
    counts: list[dict[str, int]],
    blocks: list[BlockReport],
    progress: Progress,
) -> Counted:
    """Fill the output folder from the finished blocks, and check what it holds."""
    last = len(blocks) - 1
    work.export.mkdir()
    sink: FolderSink | PackedSink
    if config.quant.packed:
        sink = PackedSink(source, work.export, config.quant)
    else:
        sink = FolderSink(source, work.export)
    try:
        with ThreadPoolExecutor(1) as ahead:  # the next block is read while one is written
            coming = ahead.submit(work.proven, 0)
            for t in range(last + 1):
                params, grids = coming.result()
                if t < last:
                    coming = ahead.submit(work.proven, t + 1)
                sink.write(t, params, grids)
                progress(last, EXPORT.name, t + 1, last + 1, None)
        sink.close()
    except BaseException:
        sink.abandon()
        raise
    tuned = any(block.compensation for block in blocks)
    pattern = parse_pattern(config.prune.pattern)

    def checked(done: int, total: int) -> None:
        progress(last, CHECK.name, done, total, None)

    return verify_export(source, work.export, counts, pattern, tuned, checked)


def _record(
    config: RunConfig,
    weights: Weights,
    samples: dict[str, Any],
    blocks: list[BlockReport],
    counted: Counted,
    seconds: float,
) -> dict[str, Any]:
    peak = storage.device_peak()
    return {
        "config": dataclasses.asdict(config),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "inputs": {
            "weights": {k: v for k, v in weights.digests.items() if k != "config.json"},
            **samples,
        },
        "sparsity": counted.sparsity,
        "zeros": counted.zeros,
        "size": counted.size,
        "seconds": round(seconds, 3),
        "peak_host_mib": round(peak_mib()),
        "peak_device_mib": None if peak is None else round(peak / 2**20),
        "remedies": [line for block in blocks for line in remedies(block)],
        "blocks": [block_record(block) for block in blocks],
    }
