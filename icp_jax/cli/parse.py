"""Parse arguments into a command: option names, old spellings, configs, one-line errors."""

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
SHELLS = {  # completion file of each shell, relative to the home folder
    "bash": ".local/share/bash-completion/completions/icp-jax",
    "zsh": ".zfunc/_icp-jax",
    "tcsh": ".icp-jax.tcsh",
}
EPILOG = f"""\
Exit status: 0 success, 1 standard output closed, 2 bad input or no space, 130 interrupted.
{PROG} --version prints the version.
{PROG} {COMPLETION} bash|zsh|tcsh installs shell completion."""


def parse(args: list[str], say: Callable[[str], None] = lambda line: None) -> Any:
    """Parse arguments into the dataclass of a command. Raises InputError; exits for --help.

    say: called with one line that gives the new spelling of every old one.
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
    """Replace old spellings in the arguments; `--model` and `--out` become positional."""
    from icp_jax.cli.options import RENAMED

    old: dict[str, str] = {}
    moved: dict[str, str] = {}
    kept: list[str] = []
    left = iter(args)
    for arg in left:
        name, equals, value = arg.partition("=")
        new = RENAMED.get(_name(arg)) if arg.startswith("--") else None
        if new is None:
            kept.append(arg)
            continue
        old[name] = f"the argument {new}" if new.isupper() else new
        if new.isupper():
            moved[new] = value if equals else next(left, "")
        else:
            kept.append(new + equals + value)
    if old:
        say(f"old spellings: {', '.join(f'{name} is now {new}' for name, new in old.items())}")
    if "MODEL" in moved:
        yield moved["MODEL"]
    yield from kept
    if "OUT" in moved:
        yield moved["OUT"]


def _from_config(kind: type, args: list[str], options: dict[str, bool]) -> tuple[Any, list[str]]:
    """(defaults from --config or None, the arguments to parse)."""
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
        args = [run.model, *args]  # the only argument is OUT
    elif dry and fields["out"] is tyro.MISSING:
        fields["out"] = ""
    return kind(**fields), args


def _positional(args: list[str], options: dict[str, bool]) -> Iterator[str]:
    """The positional arguments: neither options nor values of options."""
    left = iter(args)
    for arg in left:
        if not arg.startswith("-"):
            yield arg
        elif options.get(_name(arg)) and "=" not in arg:
            next(left, None)


def _value(args: list[str], option: str) -> str | None:
    """The value of an option, given as `--x VALUE` or `--x=VALUE`; the last one wins."""
    found = None
    for k, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name == option:
            found = value if equals else next(iter(args[k + 1 :]), "")
    return found


def _name(arg: str) -> str:
    """The option without its value, with underscores turned into hyphens."""
    return arg.split("=")[0].replace("_", "-")


def _fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _options(kind: type) -> Iterator[tuple[str, bool]]:
    """(long option, whether it takes a value) for a command."""
    yield "--help", False
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default_factory):
            yield from _options(field.default_factory)
        elif "Positional" not in str(field.type):
            name = field.metadata.get("option", field.name.replace("_", "-"))
            yield f"--{name}", field.type != "bool" and bool not in get_args(field.type)[:1]


def _nearest(word: str, known: Any) -> str:
    """The advice for an unknown name: the closest known name, or the help."""
    last = {name.rsplit(".", 1)[-1].lstrip("-"): name for name in known}
    names = last | {name.lstrip("-"): name for name in known}
    near = difflib.get_close_matches(word.lstrip("-"), names, 1, 0.5)
    return f"; did you mean {names[near[0]]}?" if near else f"; see {PROG} --help"


def _one_line(boxed: str, command: str) -> str:
    """Extract the message from tyro's box as one line."""
    lines = [line.strip(" │╭╮├┤╰╯") for line in boxed.strip().splitlines()[1:]]  # after the title
    rules = [bool(line) and set(line) <= set("─-") for line in lines]  # "-" in an ASCII terminal
    start = next((k for k, rule in enumerate(rules) if not rule), 0)
    end = next((k for k, rule in enumerate(rules) if rule and k > start), len(lines))
    said = " ".join(" ".join(lines[start:end] or [boxed]).split())
    if said.startswith("Missing from"):
        named = re.findall(r"^\W {5}(\S+)", boxed.split("For full")[0], re.MULTILINE)
        missing = f"{' and '.join(named)} {'are' if named[1:] else 'is'}"
        return f"{missing} missing: see {PROG} {command} --help"
    # a type `X | None` fails for both members; only the error of X is useful
    return re.sub(r"no type matching .* - <class '\w+'>: ", "", said)


def _complete(given: list[str], settings: Any) -> str:
    """Install the completions of a shell; returns the message for the user."""
    import tyro

    from icp_jax.cli.commands import AnyCommand

    if len(given) != 1 or given[0] not in SHELLS:
        raise InputError(f"{COMPLETION} needs the name of your shell: {', '.join(SHELLS)}")
    path = Path.home() / SHELLS[given[0]]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write = ["--tyro-write-completion", given[0], str(path)]
        tyro.cli(AnyCommand, prog=PROG, args=write, config=settings)
    except SystemExit:
        pass
    except ImportError:  # tyro writes tcsh completions with shtab
        raise InputError(f"{given[0]} completion needs shtab: pip install shtab") from None
    then = {
        "bash": "open a new shell to use them",
        "zsh": f"add fpath+=({path.parent}) before compinit in .zshrc and open a new shell",
        "tcsh": f"add source {path} to .tcshrc and open a new shell",
    }
    return f"completions for {given[0]} installed in {path}: {then[given[0]]}"
