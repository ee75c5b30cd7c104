"""Run each command: call the library and print the result. Heavy imports are local to it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from icp_jax.cli import machine, standard
from icp_jax.errors import InputError

Say = Callable[[str], None]
HOST_ONLY = ("verify", "report", "pack", "unpack", "masks")  # commands that need no device


def run(command: Any, say: Say) -> None:
    """Run a parsed command. say: called with messages that are not part of the result."""
    from icp_jax.cli.commands import COMMANDS

    machine.variables()
    name = next(name for name, kind in COMMANDS.items() if isinstance(command, kind))
    if name != "prune" and name not in HOST_ONLY:  # prune joins hosts first
        machine.platforms()
    if name == "prune":
        _prune(command, say)
    elif name == "distill":
        _distill(command, say)
    else:
        RUN[name](command)


def _demo(command: Any) -> None:
    from icp_jax.cli import console, progress
    from icp_jax.demo import demo
    from icp_jax.demo_model import demo_model

    watch = progress.shown(command.quiet)
    if command.model is None:
        result = demo(command.out, command.sparsity, watch)
    else:
        result = demo_model(command.model, command.out, command.sparsity, watch)
    _print(command.json, result, lambda: console.demo(result))


def _prune(command: Any, say: Say) -> None:
    from icp_jax.cli import console, progress
    from icp_jax.cli.options import run_config
    from icp_jax.runs.run import dry_run, follow, prune_folder
    from icp_jax.streaming.hosts import launch

    config, output, hosts = run_config(command), command.output, command.hosts
    if output.dry_run:
        if output.resume:
            raise InputError("--dry-run and --resume exclude each other: leave out one of them")
        machine.platforms()
        found = dry_run(config)
        _print(output.json, dataclasses.asdict(found), lambda: console.dry_run(found))
        return
    where = hosts.hosts_coordinator, hosts.hosts_count, hosts.hosts_index
    done = None
    try:
        with launch(*where) as leads:
            machine.platforms()
            if not leads:
                follow(config)
                return
            with progress.shown(output.quiet)("") as (tick, expect):
                done = prune_folder(
                    config, tick, resume=output.resume, say=say, expect=expect,
                    report_text=output.report_text, track=output.track,
                )  # fmt: skip
        record: dict[str, Any] = {"out": str(done.out), "sparsity": done.sparsity}
        if done.pruned_sparsity is not None:
            record["pruned_sparsity"] = done.pruned_sparsity
        if done.global_pass is not None:
            record["global_pass"] = done.global_pass
        record["seconds"] = round(done.seconds, 3)
        _print(output.json, record, lambda: console.pruned(done))
    except KeyboardInterrupt as error:
        if done is not None:
            error.add_note(f"after the run had finished; {done.out} is complete")
        raise


def _plan(command: Any) -> None:
    from icp_jax.cli import console
    from icp_jax.cli.options import run_config
    from icp_jax.planning.plan import plan

    planned = plan(run_config(command))
    _print(command.output.json, planned.record(), lambda: console.planned(planned))


def _distill(command: Any, say: Say) -> None:
    from icp_jax.cli import console_distill, progress
    from icp_jax.config import CalibrationConfig, GlobalConfig, MemoryConfig, RunConfig
    from icp_jax.runs.distill import distill_folder

    c = command
    config = RunConfig(
        model=c.dense,
        out=c.out,
        calibration=CalibrationConfig(c.data, c.samples, c.seq_len, c.seed),
        memory=MemoryConfig(c.streams),
        dtype=c.dtype,
        seed=c.seed,
        global_pass=GlobalConfig(c.epochs, c.lr, c.batch),
    )
    try:
        with progress.shown(c.quiet)("") as (tick, _):
            record = distill_folder(c.pruned, config, tick, say)
    except InputError as error:  # its options have other names than those of prune
        raise InputError(str(error).replace("global_pass.", "--")) from None
    _print(c.json, record, lambda: console_distill.distilled(record))


def _eval(command: Any) -> None:
    if bool(command.data) == bool(command.tasks):
        raise InputError("give either --data, for perplexity or IoU, or --tasks")
    if command.tasks:
        return _eval_tasks(command)
    if command.task_data:
        raise InputError("--task-data is for --tasks, not for --data: leave it out")
    from icp_jax.api import evaluate
    from icp_jax.cli import console, progress

    with progress.shown(command.quiet)("") as (tick, _):
        found = evaluate(
            command.model,
            command.data,
            seq_len=command.seq_len,
            prompt=command.prompt,
            limit=command.limit,
            against=command.against or None,
            seed=command.seed,
            dtype=command.dtype,
            progress=tick,
        )
    _print(command.json, found._asdict(), lambda: console.evaluated(found))


def _eval_tasks(command: Any) -> None:
    for name in ("seq_len", "against", "prompt", "seed"):
        if getattr(command, name) not in (None, ""):
            option = name.replace("_", "-")
            raise InputError(f"--{option} is not for --tasks: leave it out")
    from icp_jax.cli import console, progress
    from icp_jax.evaluation.tasks import evaluate_tasks

    with progress.shown(command.quiet)("") as (tick, _):
        found = evaluate_tasks(
            command.model,
            command.tasks,
            task_data=command.task_data or None,
            limit=command.limit,
            dtype=command.dtype,
            progress=tick,
        )
    _print(command.json, found.record(), lambda: console.asked(found))


def _generate(command: Any) -> None:
    from icp_jax.cli.written import generate

    generate(command)


def _segment(command: Any) -> None:
    from icp_jax.cli import console
    from icp_jax.vision.overlay import segment

    record = segment(
        command.model, command.image, command.out, command.point, command.box, command.dtype
    )
    _print(command.json, record, lambda: console.segmented(record))


def _convert(command: Any) -> None:
    from icp_jax.runs.convert import convert

    kind = convert(command.src, command.dst, command.dtype)
    record = {"out": command.dst, "format": kind}
    _print(command.json, record, lambda: print(f"{command.dst}: {kind}"))


def _verify(command: Any) -> None:
    from icp_jax.cli import console_files
    from icp_jax.data.hub import resolve
    from icp_jax.runs.verify import check_facts, verify

    folder = resolve(command.folder)
    facts = verify(folder, resolve(command.source) if command.source else None)
    _print(command.json, facts, lambda: console_files.verified(facts))
    check_facts(facts)


def _pack(command: Any) -> None:
    from icp_jax.cli import console_files
    from icp_jax.runs.pack import pack

    if command.format == "macko":
        if command.bits is not None:
            raise InputError("--bits is not for --format macko: leave it out")
        from icp_jax.runs.macko import save_macko

        record = save_macko(command.folder, command.out)
        return _print(command.json, record, lambda: console_files.for_macko(record))
    _platforms_of_trees(command.folder)
    record = pack(command.folder, command.out, command.bits)
    _print(command.json, record, lambda: console_files.packed(record))


def _platforms_of_trees(folder: str) -> None:
    """Check the platforms for an Orbax folder, packed or not: JAX reads and writes it."""
    from icp_jax.runs.orbax import is_orbax
    from icp_jax.runs.pack_orbax import KEPT

    if is_orbax(Path(folder)) or is_orbax(Path(folder) / KEPT):
        machine.platforms()


def _unpack(command: Any) -> None:
    from icp_jax.runs.pack import unpack

    _platforms_of_trees(command.folder)
    record = unpack(command.folder, command.out)
    _print(command.json, record, lambda: print("{out}: {bytes} bytes".format(**record)))


def _masks(command: Any) -> None:
    from icp_jax.runs.masks import save_masks

    record = save_masks(command.folder, command.out)
    said = "{out}: {masks} masks, {zeros} zeros of {size} weights".format(**record)
    _print(command.json, record, lambda: print(said))


def _sweep(command: Any) -> None:
    from icp_jax.cli import sweeping
    from icp_jax.sweeps.run import sweep

    names = ("model", "calibration", "data", "limit", "trials", "budget", "objective", "sampler")
    changes = {name: v for name in names if (v := getattr(command, name)) not in ("", None)}
    with sweeping.shown(command.quiet) as watch:
        found = sweep(
            command.sweep,
            command.out,
            resume=command.resume,
            engine=command.engine,
            export_best=command.export_best,
            watch=watch,
            **changes,
        )
    _print(command.json, sweeping.record(found), lambda: sweeping.swept(found))


def _report(command: Any) -> None:
    from icp_jax.report.write import report

    path = report(command.folders, command.out or None)
    _print(command.json, {"out": str(path)}, lambda: print(path))


RUN: dict[str, Callable[[Any], None]] = {
    "demo": _demo,
    "plan": _plan,
    "eval": _eval,
    "generate": _generate,
    "segment": _segment,
    "convert": _convert,
    "verify": _verify,
    "pack": _pack,
    "unpack": _unpack,
    "masks": _masks,
    "sweep": _sweep,
    "report": _report,
}


def _print(as_json: bool, record: dict[str, Any], otherwise: Callable[[], None]) -> None:
    with standard.written(InputError, record.get("out") or record.get("checkpoint")):
        if as_json:
            print(json.dumps(record))
        else:
            otherwise()
