"""Runs one stage after the other, each in a process of its own with a limit of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu import card
from gpu.files import read, write
from gpu.stages import Stage, fitting

HERE = Path(__file__).parents[1]  # benchmarks/
SAID = 4000  # characters of a failed stage's standard error that are kept
CHECK = "check.json"

Say = Callable[[str], None]


def command(stage: Stage, job: Path, out: Path) -> list[str]:
    """What runs a stage; it writes its record to `out` as it goes."""
    return [sys.executable, "-m", "gpu.stage", stage.module, str(job), str(out)]


def run_all(
    stages: Sequence[Stage], job: dict[str, Any], out: Path, minutes: float, say: Say = print
) -> dict[str, Any]:
    """Run the stages that fit into so many minutes. Every stage leaves `out/<stage>.json`.

    job: for the stages, as plain values. Returns what `out/check.json` says: the seconds of each
    stage, and the stages that failed or were dropped.
    """
    started, ends = time.monotonic(), time.monotonic() + 60 * minutes
    told: dict[str, Any] = {"command": job["command"], "minutes": minutes, "tiny": job["tiny"]}
    told |= {"card": card.ask("name,driver_version"), "seconds": {}, "failed": [], "dropped": []}
    _, early = fitting(stages, 60 * minutes)
    if early:
        say(f"{minutes:g} minutes may be too short for: {', '.join(s.name for s in early)}")
    for stage in stages:
        left = ends - time.monotonic()
        if stage.seconds > left:
            told["dropped"].append(stage.name)
            say(f"{stage.name}: dropped, it takes {stage.seconds} s and {left:.0f} s are left")
        else:
            say(f"{stage.name}: started")
            record = run_one(stage, job, out, min(stage.limit, left))
            told["seconds"][stage.name] = record["seconds"]
            if "error" in record:
                told["failed"].append(stage.name)
            ended = record.get("error") or record.get("skipped") or "done"
            say(f"{stage.name}: {record['seconds']:.1f} s, {ended.strip().splitlines()[-1]}")
        told["seconds_of_all"] = round(time.monotonic() - started, 1)
        write(out / CHECK, told)
    return told


def run_one(stage: Stage, job: dict[str, Any], out: Path, limit: float) -> dict[str, Any]:
    """One stage's record, which is also written to `out/<stage>.json`.

    What a stage had found when it failed or ran over its limit stays in its record.
    """
    scratch, path = Path(job["scratch"]), out / f"{stage.name}.json"
    path.unlink(missing_ok=True)
    given, found = scratch / f"{stage.name}-job.json", scratch / f"{stage.name}-found.json"
    started = time.monotonic()
    write(given, job | {"seconds": limit})
    said = scratch / f"{stage.name}.err"
    variables = card.environment(job["cache"])
    if stage.platform:
        variables |= {"JAX_PLATFORMS": stage.platform}
    variables["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])
    with said.open("wb") as errors:
        child = subprocess.Popen(
            command(stage, given, found),
            cwd=HERE,
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # so that its own children can be stopped with it
        )
        try:
            code = child.wait(limit)
            error = "" if code == 0 else f"status {code}\n{_end(said)}"
        except subprocess.TimeoutExpired:
            error = f"stopped after {limit:.0f} s\n{_end(said)}"
        finally:
            _stop(child)
    record = {"stage": stage.name, "tiny": job["tiny"], "command": job["command"], **read(found)}
    record["seconds"] = round(time.monotonic() - started, 2)
    if error:
        record["error"] = error
    write(path, record)
    return record


def _end(said: Path) -> str:
    return said.read_text(errors="replace")[-SAID:]


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a stage, and the processes that it started and left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
