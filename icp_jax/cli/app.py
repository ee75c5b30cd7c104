"""The command line: parse, compose, print. Bad input is one line on standard error and status 2."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, get_args

import absl.logging

from icp_jax.backend import compile_cache, heap
from icp_jax.cli import interrupts, machine, standard
from icp_jax.errors import InputError

PROG = "icp-jax"
NO_PATTERN = "unstructured"


def parse(args: list[str]) -> Any:
    """Arguments to one of the commands' dataclasses. Raises InputError; exits for --help."""
    import tyro

    from icp_jax.cli.commands import COMMANDS, AnyCommand

    settings = (tyro.conf.FlagCreatePairsOff,)
    if not args or args[0] in ("-h", "--help"):
        return tyro.cli(AnyCommand, prog=PROG, args=["--help"], config=settings)
    if args[0] == "--version":
        from icp_jax import __version__

        print(f"{PROG} {__version__}")
        raise SystemExit(0)
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        raise InputError(f"unknown command {command!r}{_nearest(command, COMMANDS)}")
    kind = COMMANDS[command]
    known = {"--help", *_options(kind)}
    for arg in rest:
        if arg.startswith("--") and arg.split("=")[0].replace("_", "-") not in known:
            option = arg.split("=")[0]
            raise InputError(f"unknown option {option}{_nearest(option, known)}")
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            default = _default(kind, rest)
            return tyro.cli(
                kind, prog=f"{PROG} {command}", args=rest, default=default, config=settings
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_one_line(shown.getvalue())) from None


def _default(kind: type, args: list[str]) -> Any:
    """What the command line overrides: with --config, the run that the file describes."""
    from icp_jax import config

    name = _value(args, "--config")
    if name is None:
        return None
    run = config.load(name)
    method, pattern = (_value(args, f"--prune.{field}") for field in ("method", "pattern"))
    if method in (None, *get_args(config.MethodName)):  # else what follows refuses it
        pattern = NO_PATTERN if pattern == "None" else pattern
        run = config.rechosen(run, method, pattern)
    return kind(**{f.name: getattr(run, f.name) for f in dataclasses.fields(run)})


def _value(args: list[str], option: str) -> str | None:
    """What an option is given, `--x VALUE` or `--x=VALUE`, the last time it is."""
    found = None
    for k, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name == option:
            found = value if equals else next(iter(args[k + 1 :]), "")
    return found


def _options(kind: type, prefix: str = "") -> Iterator[str]:
    """The long options of a dataclass, nested ones with dots."""
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(field.default_factory):
            yield from _options(field.default_factory, f"{name}.")
        else:
            yield f"--{name}"


def _nearest(word: str, known: Any) -> str:
    by_last = {name.rsplit(".", 1)[-1].lstrip("-"): name for name in known}
    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    near = near or [by_last[n] for n in difflib.get_close_matches(word.lstrip("-"), by_last, 1)]
    return f"; did you mean {near[0]}?" if near else f"; see {PROG} --help"


def _one_line(boxed: str) -> str:
    """The sentence inside tyro's box."""
    lines = [line.strip(" │╭╮├┤╰╯") for line in boxed.strip().splitlines()[1:]]  # after its title
    rules = [
        bool(line) and set(line) <= set("─-") for line in lines
    ]  # in ASCII where the terminal is
    start = next((k for k, rule in enumerate(rules) if not rule), 0)
    end = next((k for k, rule in enumerate(rules) if rule and k > start), len(lines))
    said = " ".join(" ".join(lines[start:end] or [boxed]).split())
    # of the types an option may have, None comes first: only the last one's error helps
    return re.sub(r"no type matching .* - <class '\w+'>: ", "", said)


def main(argv: list[str] | None = None) -> int:
    """Run a command; the entry point. Returns the exit status."""
    from converters.names import shown
    from converters.rules import ConversionError

    try:
        machine.linux()
        args = sys.argv[1:] if argv is None else argv
        if argv is None:
            machine.utf8()
            standard.prepare()
        _prepare()
        machine.names(args)
        with standard.written(InputError):
            command = parse(args)
        run(command)
    except (InputError, ConversionError) as error:
        return _fail(f"{error}{_kept(error, '; stopped ')}")
    except KeyboardInterrupt as error:
        return _fail(f"interrupted{_kept(error) or '; nothing was written'}", 130)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            nothing = "; nothing was kept: free space, or write elsewhere"
            return _fail(f"the disk is full{_kept(error) or nothing}")
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENAMETOOLONG):
            name = shown(error.filename) if len(str(error.filename)) > 200 else error.filename
            why = f"{name}: {error.strerror}{_kept(error, '; stopped ')}"
            return _fail(f"cannot open {why}")
        if error.errno == errno.ENOENT and error.filename is None:
            return _fail("the current folder is gone: change to one that is there")
        raise
    except (MemoryError, RuntimeError) as error:  # XLA's errors are RuntimeErrors
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            advice = "see what fits with icp-jax plan, then set --memory.*"
            return _fail(f"out of memory: {advice}{_kept(error, '; stopped ')}")
        raise
    return 0


def _prepare() -> None:
    """Settings of this process, before anything is imported that reads them."""
    # OpenBLAS' threads and XLA's get in each other's way: seconds lost in a Cholesky.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is not there
    compile_cache.use()
    heap.reuse()
    absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax raises what it logs
    interrupts.install()


def _kept(error: BaseException, lead: str = " ") -> str:
    """Where the run can be taken up again, as `Work` notes it on what ended a run; or nothing."""
    return "".join(lead + note for note in getattr(error, "__notes__", []))


def _fail(message: str, status: int = 2) -> int:
    _say(message)
    return status


def _say(message: str) -> None:
    print(f"{PROG}: {' '.join(message.split())}", file=sys.stderr)


def run(command: Any) -> None:
    """Dispatch a parsed command. Heavy imports happen here, not before."""
    from icp_jax.cli import commands, console

    machine.variables()
    if not isinstance(command, commands.Prune | commands.Verify):  # hosts meet first; no JAX
        machine.platforms()
    if isinstance(command, commands.Demo):
        from icp_jax.demo import demo

        result = demo(command.out, command.sparsity, console.progress)
        _print(command.json, result, lambda: console.demo(result))
    elif isinstance(command, commands.Prune):
        _prune(command)
    elif isinstance(command, commands.Plan):
        from icp_jax.planning.plan import plan

        planned = plan(_run_config(command), command.device_memory, command.host_memory)
        _print(command.json, planned.record(), lambda: console.planned(planned))
    elif isinstance(command, commands.Eval):
        from icp_jax.api import evaluate

        with console.progress() as tick:
            found = evaluate(
                command.model,
                command.data,
                seq_len=command.seq_len,
                prompt=command.prompt,
                limit=command.limit,
                seed=command.seed,
                dtype=command.dtype,
                progress=tick,
            )
        _print(command.json, found._asdict(), lambda: console.evaluated(found))
    elif isinstance(command, commands.Segment):
        from icp_jax.vision.overlay import segment

        record = segment(
            command.model, command.image, command.out, command.point, command.box, command.dtype
        )
        _print(command.json, record, lambda: console.segmented(record))
    elif isinstance(command, commands.Verify):
        from icp_jax.data.hub import resolve
        from icp_jax.runs.verify import check_facts, verify

        folder = resolve(command.folder)
        facts = verify(folder, resolve(command.source) if command.source else None)
        _print(command.json, facts, lambda: console.verified(facts))
        check_facts(facts)
    else:
        from icp_jax.runs.convert import convert

        kind = convert(command.src, command.dst)
        record = {"out": command.dst, "format": kind}
        _print(command.json, record, lambda: print(f"{command.dst}: {kind}"))


def _run_config(command: Any) -> Any:
    """The part of a command that describes a run."""
    from icp_jax.config import RunConfig

    fields = dataclasses.fields(RunConfig)
    return RunConfig(**{field.name: getattr(command, field.name) for field in fields})


def _prune(command: Any) -> None:
    from icp_jax.cli import console
    from icp_jax.runs.run import dry_run, follow, prune_folder
    from icp_jax.streaming.hosts import launch

    config = _run_config(command)
    if command.dry_run:
        machine.platforms()
        found = dry_run(config)
        _print(command.json, dataclasses.asdict(found), lambda: console.dry_run(found))
        return
    hosts, done = command.hosts, None
    try:
        with launch(hosts.coordinator, hosts.count, hosts.index) as leads:
            machine.platforms()
            if not leads:
                follow(config)
                return
            with console.progress() as tick:
                done = prune_folder(config, tick, resume=command.resume, say=_say)
        record = {"out": str(done.out), "sparsity": done.sparsity}
        record["seconds"] = round(done.seconds, 3)
        _print(command.json, record, lambda: console.pruned(done))
    except KeyboardInterrupt as error:
        if done is not None:
            error.add_note(f"when it had finished; {done.out} is whole")
        raise


def _print(as_json: bool, record: dict[str, Any], otherwise: Any) -> None:
    with standard.written(InputError, record.get("out") or record.get("checkpoint")):
        if as_json:
            print(json.dumps(record))
        else:
            otherwise()


if __name__ == "__main__":
    sys.exit(main())
