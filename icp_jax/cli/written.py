"""The `generate` command: text on the terminal as it comes, or two models side by side."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from icp_jax.cli import standard
from icp_jax.errors import InputError
from icp_jax.evaluation.writing import Writer
from icp_jax.generation.sampling import Sampling

WIDE = 80  # columns of a terminal that shows two texts side by side


def generate(command: Any) -> None:
    """Run the command. Raises InputError."""
    sampling = Sampling(command.temperature, command.top_p)
    if not 0 <= command.seed < 2**63:
        raise InputError(f"seed must be at least 0 and below 2^63, got {command.seed}")
    if command.tokens < 1:
        raise InputError(f"tokens must be at least 1, got {command.tokens}")
    prompt = command.prompt or _piped()
    models = [command.model, *([command.compare] if command.compare else [])]
    settings = {"chat": command.chat, "tokens": command.tokens, "dtype": command.dtype}
    writers = [Writer(model, prompt, **settings) for model in models]
    console = Console()
    beside = len(writers) > 1 and console.is_terminal and console.width >= WIDE
    texts = []
    for writer in writers:
        with _interrupted(writer), standard.written(InputError):
            if len(writers) > 1 and not (beside or command.json):
                print(f"{writer.model}:")
            shown = not (beside or command.json)
            texts.append("".join(_shown(writer(sampling, command.seed), shown)))
    with standard.written(InputError):
        records = [writer.record(text) for writer, text in zip(writers, texts, strict=True)]
        if command.json:
            print(json.dumps({"prompt": prompt, "results": records}))
        elif beside:
            console.print(_columns(records))
    if not command.quiet:
        for record in records:
            print(_speed(record, name=len(writers) > 1), file=sys.stderr)


def _piped() -> str:
    """The text piped into the command, without its last line break; empty on a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8 text: convert it to UTF-8") from None
    return text.removesuffix("\n")


def _shown(pieces: Iterator[str], shown: bool) -> Iterator[str]:
    for piece in pieces:
        if shown and piece:
            print(piece, end="", flush=True)
        yield piece
    if shown:
        print()


@contextlib.contextmanager
def _interrupted(writer: Writer) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(f"after {len(writer.ids)} tokens")
        raise


def _columns(records: list[dict[str, Any]]) -> Table:
    table = Table(expand=True)
    for record in records:
        table.add_column(Text(record["model"]), ratio=1, overflow="fold")
    table.add_row(*(Text(record["text"].strip("\n")) for record in records))
    return table


def _speed(record: dict[str, Any], name: bool) -> str:
    count, rate = len(record["tokens"]), record["tokens_per_second"]
    lead = f"{record['model']}: " if name else ""
    fast = "" if rate is None else f", {rate:.1f} tokens/s"
    end = ", ended by the model" if record["stopped"] else ""
    return f"{lead}{count} tokens{fast}{end}"
