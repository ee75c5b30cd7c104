"""The options of a pruning run: names, help groups, and the setting that each one sets."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from icp_jax import checks
from icp_jax.config import RunConfig

# Help group -> option -> setting of RunConfig. The most used groups come first.
GROUPS: dict[str, dict[str, str]] = {
    "method": {"method": "prune.method"},
    "sparsity": {"sparsity": "prune.sparsity", "pattern": "prune.pattern", "bits": "quant.bits"},
    "data": {
        "data": "calibration.data",
        "samples": "calibration.samples",
        "seq-len": "calibration.seq_len",
    },
    "memory": {
        "device-memory": "memory.device",
        "host-memory": "memory.host",
    },
    "output": {},
    "streams": {
        "memory.streams": "memory.streams",
        "memory.stream-dtype": "memory.stream_dtype",
        "memory.batch-tokens": "memory.batch_tokens",
        "memory.remat": "memory.remat",
    },
    "layers": {
        "include": "prune.include",
        "exclude": "prune.exclude",
        "sparsity-of": "prune.sparsity_of",
        "keep-first": "prune.keep_first",
        "keep-last": "prune.keep_last",
    },
    "pruning": {
        "prune.alpha": "prune.alpha",
        "prune.beta": "prune.beta",
        "prune.rearrange": "prune.rearrange",
        "prune.solver": "prune.solver",
        "prune.damping": "prune.damping",
        "prune.block-size": "prune.block_size",
    },
    "compensation": {
        "compensate.epochs": "compensate.epochs",
        "compensate.lr": "compensate.lr",
        "compensate.gamma": "compensate.gamma",
        "seed": "seed",
    },
    "retune": {
        "retune.steps": "retune.steps",
        "retune.epochs": "retune.epochs",
        "retune.lr": "retune.lr",
        "retune.gamma": "retune.gamma",
    },
    "distillation": {
        "global-epochs": "global_pass.epochs",
        "global-lr": "global_pass.lr",
        "global-batch": "global_pass.batch",
    },
    "calibration": {
        "calibration.seed": "calibration.seed",
        "calibration.overlap": "calibration.overlap",
    },
    "quantization": {
        "quant.group": "quant.group",
        "quant.symmetric": "quant.symmetric",
        "quant.search": "quant.search",
        "quant.packed": "quant.packed",
    },
    "machine": {"dtype": "dtype", "devices": "devices"},
}
METAVARS = {
    "pattern": "N:M",
    "include": "GLOB",
    "exclude": "GLOB",
    "sparsity-of": "GLOB=S",
    "data": "DATA",
    "config": "CONFIG",
    "device-memory": "SIZE",
    "host-memory": "SIZE",
    "prune.rearrange": "GIVES-TAKES",
    "hosts.coordinator": "HOST:PORT",
}
OPTION = {setting: f"--{name}" for names in GROUPS.values() for name, setting in names.items()}
OPTION |= {"model": "MODEL", "out": "OUT"}


def _spelled_as_setting(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


RECENT = (*GROUPS["layers"].values(), *GROUPS["distillation"].values())
# Spellings of the previous release, which still work.
RENAMED = {
    old: new
    for setting, new in OPTION.items()
    if (old := _spelled_as_setting(setting)) != new and setting not in RECENT
}


@cache
def helps(kind: type) -> dict[str, str]:
    """The docstring of each field of a dataclass."""
    found = docstring_parser.parse_from_object(kind).params
    return {p.arg_name: " ".join((p.description or "").split()) for p in found}


@cache
def kinds() -> dict[str, tuple[type, str]]:
    """Setting -> (the dataclass that declares it, its field name)."""
    found: dict[str, tuple[type, str]] = {}
    for setting in checks.flat(RunConfig()):
        part, _, inner = setting.partition(".")
        kind = get_type_hints(RunConfig)[part] if inner else RunConfig
        found[setting] = (kind, inner or part)
    return found


# (type, default, help)
Option = tuple[Any, Any, str]


def command(
    name: str,
    doc: str,
    arguments: Mapping[str, tuple[str, str]],
    more: Mapping[str, Mapping[str, Option]],
) -> type:
    """Build the tyro dataclass of a command that takes the options of a run.

    arguments: positional arguments with their metavar and help. more: options that are not
    settings, by group; groups that are not in GROUPS come last.
    """
    fields: list[Any] = []
    for argument, (metavar, help) in arguments.items():
        said = tyro.conf.arg(metavar=metavar, help=help)
        fields.append((argument, tyro.conf.Positional[Annotated[str, said]]))
    for title in dict.fromkeys([*GROUPS, *more]):
        if made := _group(title, more.get(title, {})):
            marked = tyro.conf.OmitArgPrefixes[made]  # type: ignore[valid-type]
            fields.append((title, marked, dataclasses.field(default_factory=made)))
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    made.__doc__ = doc
    return made


def _group(title: str, more: Mapping[str, Option]) -> type | None:
    found = []
    for option, setting in GROUPS.get(title, {}).items():
        kind, field = kinds()[setting]
        hint, default = get_type_hints(kind)[field], getattr(kind(), field)
        found.append(_field(option, hint, default, helps(kind)[field]))
    found += [_field(option, *what) for option, what in more.items()]
    return dataclasses.make_dataclass(title, found, frozen=True) if found else None


def _field(option: str, hint: Any, default: Any, help: str) -> tuple[str, Any, Any]:
    hidden = "" if _unset(default, help) else None
    metavar = METAVARS.get(option) or _metavar(hint)
    said = tyro.conf.arg(name=option, help=help, metavar=metavar, help_behavior_hint=hidden)
    if get_origin(hint) is tuple:
        hint = Annotated[hint, tyro.conf.UseAppendAction]  # one value an option; repeatable
    known = dataclasses.field(default=default, metadata={"option": option})
    return attribute(option), Annotated[hint, said], known


def _metavar(hint: Any) -> str | None:
    """The metavar of an optional type, without `None`."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if NoneType not in get_args(hint):
        return None
    if get_origin(kinds[0]) is Literal:
        return "{" + ",".join(map(str, get_args(kinds[0]))) + "}"
    return "{True,False}" if kinds == [bool] else kinds[0].__name__.upper()


T = TypeVar("T")


def described(kind: type[T]) -> type[T]:
    """Decorate a command's dataclass: its docstrings are the help, as for the options of a run."""
    hints, texts = get_type_hints(kind, include_extras=True), helps(kind)  # type: ignore[arg-type]
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        hint, help = hints[field.name], texts[field.name]
        metavar = None if get_origin(hint) is Annotated else _metavar(hint)
        hidden = "" if _unset(field.default, help) else None
        said = tyro.conf.arg(metavar=metavar, help=help, help_behavior_hint=hidden)
        kind.__annotations__[field.name] = Annotated[hint, said]
    return kind


def _unset(default: Any, help: str) -> bool:
    """Whether the help says what happens without the option, so that tyro need not."""
    return default is None or default is False or default == "" or "Default:" in help


def attribute(option: str) -> str:
    """The attribute name of an option."""
    return option.replace("-", "_").replace(".", "_")


def run_config(command: Any) -> RunConfig:
    """Build the RunConfig of a parsed command."""
    run = RunConfig(model=command.model, out=getattr(command, "out", ""))
    for title, options in GROUPS.items():
        for option, setting in options.items():
            run = checks.put(run, setting, getattr(getattr(command, title), attribute(option)))
    return run


def defaults(kind: type, run: RunConfig) -> dict[str, Any]:
    """The values of a config for the fields of a command's dataclass."""
    settings = checks.flat(run)
    found = {name: settings[name] for name in ("model", "out") if settings[name]}
    for field in dataclasses.fields(kind):
        if field.name in GROUPS:
            values = {attribute(o): settings[s] for o, s in GROUPS[field.name].items()}
            found[field.name] = dataclasses.replace(field.default_factory(), **values)  # type: ignore[operator]
    return found


NAMED = "prune|compensate|retune|global_pass|calibration|quant|memory"
SETTING = re.compile(rf"(?<![\w./'\"-])(?:{NAMED})\.\w+(?![\w/])")


def as_options(message: str) -> str:
    """Replace the names of settings in a library message by their command line options."""
    if message.startswith(("config ", "sweep ", "point ")):  # files use the library's names
        return message
    return SETTING.sub(lambda found: OPTION.get(found[0], found[0]), message)
