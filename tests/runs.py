"""Command lines of small runs, and what is compared of their outputs."""

import json

BLOCKS = 4

ARGUMENTS = ["prune", "--model", "model", "--out", "work/out", "--prune.sparsity", "0.5"]
ARGUMENTS += ["--calibration.data", "text.txt", "--calibration.samples", "6"]
ARGUMENTS += ["--compensate.epochs", "2", "--compensate.lr", "1e-3"]


def contents(folder):
    """Every file's bytes; of the record all but times, and the memory that the process took."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    record = json.loads(found.pop("icp_run.json"))
    del record["seconds"], record["config"]["out"]
    del record["peak_host_mib"], record["peak_device_mib"]
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
