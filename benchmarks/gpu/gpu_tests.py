"""The stage `tests`: `pytest -m gpu`, and how each test went."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu import card

ROOT = Path(__file__).parents[2]
OUTCOMES = ("failure", "error", "skipped")


def run(job: dict[str, Any], keep: Any) -> dict[str, Any]:
    """The outcome of every test; tiny: they are only collected, since they need a GPU."""
    told = Path(job["scratch"]) / "tests.xml"
    code = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/test_gpu.py"]
    code += ["-q", "--collect-only"] if job["tiny"] else ["-v", f"--junitxml={told}"]
    variables = card.environment(job["cache"])
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), variables.get("PYTHONPATH", "")])
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    child = subprocess.Popen(code, cwd=ROOT, env=variables, text=True, **pipes)
    assert child.stdout is not None
    lines, tests = [], []
    for line in child.stdout:
        lines.append(line)
        if "::" in line:
            tests.append(line.strip())
            keep({"so_far": tests})  # of tests that run over the limit
    status = child.wait()
    if job["tiny"] and status == 0 and tests:
        return {"collected": len(tests)}
    if job["tiny"] or not told.exists():
        raise RuntimeError("".join(lines)[-3000:])
    return outcomes(told)


def outcomes(told: Path) -> dict[str, Any]:
    """What a JUnit file says: counts, and what each test that did not pass said."""
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "said": {}}
    for case in ElementTree.parse(told).iter("testcase"):
        kind = next((tag for tag in OUTCOMES if case.find(tag) is not None), "")
        name = {"": "passed", "skipped": "skipped"}.get(kind, "failed")
        found[name] += 1
        found["seconds"] += float(case.get("time", 0))
        part = case.find(kind) if kind else None
        if part is not None:
            said = f"{part.get('message') or ''}\n{part.text or ''}"
            found["said"][case.get("name", "")] = said[-1500:]
    return found
