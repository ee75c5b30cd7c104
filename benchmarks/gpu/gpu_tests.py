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
    code = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"]
    code += ["--collect-only"] if job["tiny"] else [f"--junitxml={told}"]
    variables = card.environment(job["cache"])
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), variables.get("PYTHONPATH", "")])
    done = subprocess.run(code, cwd=ROOT, env=variables, capture_output=True, text=True)
    if job["tiny"]:
        names = [line for line in done.stdout.splitlines() if "::" in line]
        if done.returncode or not names:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        return {"collected": len(names)}
    if not told.exists():
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
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
