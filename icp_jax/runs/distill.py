"""Distill one folder: tune a pruned model to predict what the dense one does, block by block."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import RECORD, REPORT, check_other_files
from converters.packed_forms import Levels, parse_form
from converters.packed_reader import PackedReader
from icp_jax.config import RunConfig, check, filled
from icp_jax.data import inputs
from icp_jax.data.hub import resolve
from icp_jax.errors import InputError
from icp_jax.phases import EXPORT, GLOBAL, Progress
from icp_jax.report import write
from icp_jax.runs import distill_record, global_pass
from icp_jax.runs.export import Aside, FolderSink, write_json
from icp_jax.runs.fingerprint import Weights
from icp_jax.runs.resume import Say, log
from icp_jax.runs.verify_export import Counted, verify_export
from icp_jax.streaming.distill import Hooks, Reached, check_text, distill
from icp_jax.streaming.distill_steps import Pass
from icp_jax.streaming.passes import compute_dtype
from icp_jax.streaming.source import FolderSource

Record = dict[str, Any]


def distill_folder(
    pruned: str,
    config: RunConfig,
    progress: Progress = lambda block, phase, done, total, loss: None,
    say: Say = log.warning,
) -> Record:
    """Distill the folder `pruned` into config.out, which is complete or absent.

    config: `model` is the dense model; of the other settings, those of the calibration and of the
    global pass, `memory.streams`, `dtype` and `seed` count. progress: called with (block, phase,
    done, total, loss). say: called with one line if no report can be written. One block is on the
    device at a time. Returns the record. Raises InputError or ConversionError before anything is
    written.
    """
    started = time.perf_counter()
    if not config.global_pass.epochs:
        raise InputError("global_pass.epochs must be at least 1, got 0")
    config = filled(check(config))
    with ExitStack() as stack:
        source, dense = (
            stack.enter_context(closing(FolderSource(resolve(name))))
            for name in (pruned, config.model)
        )
        check_models(source, dense)
        global_pass.check_room(source)
        aside = stack.enter_context(Aside(config.out))
        tokens = inputs.calibration(config.calibration, dense, progress)
        windows = global_pass.split(tokens)
        weights = [Weights(source), Weights(dense)]
        made = global_pass.steps_of(config.global_pass, config.seed or 0, len(windows.tuned))
        given = Pass(made, compute_dtype(config.dtype), config.memory.streams)
        found = _tuned(source, dense, windows, given, progress)
        counted = _export(source, found, aside.path, progress)
        for each in weights:
            each.check()
        told = distill_record.record(source.folder, config, counted)
        told["global_pass"] = {
            **global_pass.record(found, config.global_pass, windows),
            **distill_record.circumstances(pruned, config.model),
            "command": distill_record.command(pruned, config),
            "inputs": distill_record.inputs(weights, inputs.record(source, tokens)),
            "seconds": round(time.perf_counter() - started, 3),
        }
        write_json(aside.path / RECORD, told)
        if told["blocks"]:
            page = partial(write.run_html, told)
            write.attempt(aside.path / REPORT, page, say, aside.out)
        aside.publish()
    return {"out": str(aside.out), **told}


def check_models(pruned: FolderSource, dense: FolderSource) -> None:
    """Raise InputError for models that cannot be distilled."""
    check_text(pruned.family)
    check_other_files(pruned.folder)
    shapes = [
        {rule.path: rule.shape for rule in source.placed if rule.path[0] == "blocks"}
        for source in (pruned, dense)
    ]
    if shapes[0] != shapes[1] or pruned.family != dense.family:
        raise InputError(
            f"{dense.folder} has other shapes than {pruned.folder}: give the model that was pruned"
        )
    reader, bits = pruned.reader, None
    if isinstance(reader, PackedReader):
        forms = [parse_form(reader.stored(rule.name).form) for rule in pruned.placed]
        bits = next((form.bits for form in forms if isinstance(form, Levels)), None)
    settings = distill_record.known(pruned.folder).get("config", {}).get("quant") or {}
    bits = bits or settings.get("bits")
    if bits:
        raise InputError(
            f"{pruned.folder} is quantized to {bits} bits, and tuning would move its weights off "
            "their grid: give a model that was pruned without bits"
        )


def _tuned(
    source: FolderSource,
    dense: FolderSource,
    windows: global_pass.Windows,
    given: Pass,
    progress: Progress,
) -> Reached:
    for each in (source, dense):
        each.check_finite()
    return distill(source, dense, *windows, given, Hooks(partial(progress, -1, GLOBAL.name)))


def _export(source: FolderSource, found: Reached, folder: Path, progress: Progress) -> Counted:
    """Write the best epoch's blocks and everything else as it is, and check the files."""
    sink, zeros, n_blocks = FolderSink(source, folder), [], source.family.n_blocks
    try:
        for t in range(n_blocks):
            block = global_pass.block_of(found, source, t)
            kernels = {s.name: source.block(t)[s.name]["kernel"] for s in source.family.linears}
            zeros.append({name: k.size - np.count_nonzero(k) for name, k in kernels.items()})
            sink.write(t, block)
            source.forget()
            progress(-1, EXPORT.name, t + 1, n_blocks, None)
        sink.close()
    except BaseException:
        sink.abandon()
        raise
    return verify_export(source, folder, zeros, None, 0)
