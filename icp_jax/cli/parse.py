"""From arguments to a command: names, old spellings, configs, and errors in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from icp_jax.errors import InputError

PROG = "icp-jax"
NO_PATTERN = "unstructured"
COMPLETION = "--install-completion"
SHELLS = {  # where each shell looks for completions, below the home folder
    "bash": ".local/share/bash-completion/completions/icp-jax",
    "zsh": ".zfunc/_icp-jax",
    "tcsh": ".icp-jax.tcsh",
}
EPILOG = f"""\
Exit status: 0 done, 1 standard output was closed, 2 bad input or no room, 130 interrupted.
{PROG} --version prints the version; {PROG} {COMPLETION} bash|zsh|tcsh sets up the Tab key."""


def parse(args: list[str], say: Callable[[str], None] = lambda line: None) -> Any:
    """Arguments to one of the commands' dataclasses. Raises InputError; exits for --help.

    say: told the new spelling of every option that is given by its old one.
    """
    import tyro

    from icp_jax.cli.commands import COMMANDS, AnyCommand

    settings = (tyro.conf.FlagCreatePairsOff,)
    if not args or args[0] in ("-h", "--help"):
        with contextlib.suppress(SystemExit):
            tyro.cli(AnyCommand, prog=PROG, args=["--help"], config=settings)
        print(EPILOG)
        raise SystemExit(0)
    if args[0] == "--version":
        from icp_jax import __version__

        print(f"{PROG} {__version__}")
        raise SystemExit(0)
    if args[0] == COMPLETION:
        print(_complete(args[1:], settings))
        raise SystemExit(0)
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        raise InputError(f"unknown command {command!r}{_nearest(command, COMMANDS)}")
    kind = COMMANDS[command]
    options = dict(_options(kind))
    if "model" in _fields(kind) and "--config" in options:
        rest = list(_current(rest, say))
    for arg in rest:
        name = _name(arg)
        if arg.startswith("--") and name not in options:
            raise InputError(f"unknown option {name}{_nearest(name, options)}")
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            default = None
            if "--config" in options:
                default, rest = _from_config(kind, rest, options)
            return tyro.cli(
                kind, prog=f"{PROG} {command}", args=rest, default=default, config=settings
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_one_line(shown.getvalue(), command)) from None


def _current(args: list[str], say: Callable[[str], None]) -> Iterator[str]:
    """The arguments with old spellings replaced; `--model` and `--out` become positional."""
    from icp_jax.cli.options import RENAMED

    moved: dict[str, str] = {}
    kept: list[str] = []
    left = iter(args)
    for arg in left:
        name, equals, value = arg.partition("=")
        new = RENAMED.get(_name(arg)) if arg.startswith("--") else None
        if new is None:
            kept.append(arg)
            continue
        said = f"as the argument {new}" if new.isupper() else f"as {new}"
        say(f"{name} is the old spelling: give it {said}")
        if new.isupper():
            moved[new] = value if equals else next(left, "")
        else:
            kept.append(new + equals + value)
    if "MODEL" in moved:
        yield moved["MODEL"]
    yield from kept
    if "OUT" in moved:
        yield moved["OUT"]


def _from_config(kind: type, args: list[str], options: dict[str, bool]) -> tuple[Any, list[str]]:
    """(what the arguments override, the arguments): with --config, the run that it describes."""
    import tyro

    from icp_jax import config
    from icp_jax.cli.options import defaults

    named = [name for name in ("model", "out") if name in _fields(kind)]
    given = len(list(_positional(args, options)))
    dry = "--dry-run" in args and given < 2
    if (name := _value(args, "--config")) is None:
        return None, [*args, ""] if dry and given == 1 else args
    run = config.load(name)
    method, pattern = _value(args, "--method"), _value(args, "--pattern")
    if method in (None, *get_args(config.MethodName)):  # tyro refuses any other
        pattern = NO_PATTERN if pattern == "None" else pattern
        run = config.rechosen(run, method, pattern)
    fields = dict.fromkeys(named, tyro.MISSING) | defaults(kind, run)
    if "out" in named and given == 1 and run.model and not run.out:
        args = [run.model, *args]  # the one argument is OUT
    elif dry and fields["out"] is tyro.MISSING:
        fields["out"] = ""
    return kind(**fields), args


def _positional(args: list[str], options: dict[str, bool]) -> Iterator[str]:
    """The arguments that are neither options nor their values."""
    left = iter(args)
    for arg in left:
        if not arg.startswith("-"):
            yield arg
        elif options.get(_name(arg)) and "=" not in arg:
            next(left, None)


def _value(args: list[str], option: str) -> str | None:
    """The value of an option, `--x VALUE` or `--x=VALUE`; of several, the last."""
    found = None
    for k, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name == option:
            found = value if equals else next(iter(args[k + 1 :]), "")
    return found


def _name(arg: str) -> str:
    """An option without its value; underscores are as good as hyphens."""
    return arg.split("=")[0].replace("_", "-")


def _fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _options(kind: type) -> Iterator[tuple[str, bool]]:
    """The long options of a command, and whether each takes a value."""
    yield "--help", False
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default_factory):
            yield from _options(field.default_factory)
        elif "Positional" not in str(field.type):
            name = field.metadata.get("option", field.name.replace("_", "-"))
            yield f"--{name}", field.type != "bool" and bool not in get_args(field.type)[:1]


def _nearest(word: str, known: Any) -> str:
    """Advice on a name that is none: the known one that is spelled most like it, or the help."""
    last = {name.rsplit(".", 1)[-1].lstrip("-"): name for name in known}
    names = last | {name.lstrip("-"): name for name in known}
    near = difflib.get_close_matches(word.lstrip("-"), names, 1, 0.5)
    return f"; did you mean {names[near[0]]}?" if near else f"; see {PROG} --help"


def _one_line(boxed: str, command: str) -> str:
    """The sentence inside tyro's box."""
    lines = [line.strip(" │╭╮├┤╰╯") for line in boxed.strip().splitlines()[1:]]  # after its title
    rules = [bool(line) and set(line) <= set("─-") for line in lines]  # "-" in an ASCII terminal
    start = next((k for k, rule in enumerate(rules) if not rule), 0)
    end = next((k for k, rule in enumerate(rules) if rule and k > start), len(lines))
    said = " ".join(" ".join(lines[start:end] or [boxed]).split())
    if said.startswith("Missing from"):
        named = re.findall(r"^\W {5}(\S+)", boxed.split("For full")[0], re.MULTILINE)
        missing = f"{' and '.join(named)} {'are' if named[1:] else 'is'}"
        return f"{missing} missing: see {PROG} {command} --help"
    # of the types an option may have, None comes first: only the last one's error helps
    return re.sub(r"no type matching .* - <class '\w+'>: ", "", said)


def _complete(given: list[str], settings: Any) -> str:
    """Write a shell's completions where it looks for them; what to tell the user."""
    import tyro

    from icp_jax.cli.commands import AnyCommand

    if len(given) != 1 or given[0] not in SHELLS:
        raise InputError(f"{COMPLETION} needs the name of your shell: {', '.join(SHELLS)}")
    path = Path.home() / SHELLS[given[0]]
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(SystemExit):
        write = ["--tyro-write-completion", given[0], str(path)]
        tyro.cli(AnyCommand, prog=PROG, args=write, config=settings)
    then = {
        "bash": "open a new shell",
        "zsh": f"add fpath+=({path.parent}) before compinit in .zshrc, and open a new shell",
        "tcsh": f"add source {path} to .tcshrc, and open a new shell",
    }
    return f"{path}: completions for {given[0]}; {then[given[0]]}"
