"""Command lines of small runs, and what is compared of their outputs."""

import json
import re

BLOCKS = 4

ARGUMENTS = ["prune", "model", "work/out", "--sparsity", "0.5"]
ARGUMENTS += ["--data", "text.txt", "--samples", "6"]
ARGUMENTS += ["--compensate.epochs", "2", "--compensate.lr", "1e-3"]


def placed(args):
    """`prune MODEL OUT ...` in which a later `--model X` or `--out X` replaces what stood there."""
    args = list(args)
    for at, name in ((1, "--model"), (2, "--out")):
        while args[0] == "prune" and name in args:
            k = args.index(name)
            args[at] = args[k + 1]
            del args[k : k + 2]
    return args


def contents(folder):
    """Every file's bytes; of the record all but times, and the memory that the process took.

    Of the report, which shows both, only that it is there.
    """
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found.pop("report.html")
    record = json.loads(found.pop("icp_run.json"))
    del record["seconds"], record["config"]["out"]
    del record["peak_host_mib"], record["peak_device_mib"], record["plan"]
    for block in record["blocks"]:
        assert block.pop("seconds")
    return found, record


def error(capsys):
    """The one line of a run's standard error."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def same(place, undisturbed):
    assert [p.name for p in (place / "work").iterdir()] == ["out"]
    assert contents(place / "work" / "out") == contents(undisturbed / "whole")


# How a message says what to do: an imperative after punctuation, or what was expected instead.
REMEDY = re.compile(
    r"[:;,] (?:or )?(?:add|check|choose|create|delete|did you mean|expected|fix|free|give|"
    r"install|leave|lower|move|name|pip install|put|raise|remove|rename|resize|restore|run|save|"
    r"see|set|supported|try|unset|use|wait)\b|\bmust (?:be|have)\b|\bneeds? "
)


def helpful(line, args=()):
    """Whether a message is short, and has a remedy or the value that is at fault."""
    values = [re.escape(arg) for arg in args if len(arg) > 1 and not arg.startswith("-")]
    named = re.search(r"\bgot \S|'[^']+'", line)
    named = named or any(re.search(rf"(?<!\w){value}(?!\w)", line) for value in values)
    return len(line) < 300 and bool(REMEDY.search(line) or named)
