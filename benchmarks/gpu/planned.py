"""The stage `plan`: the peaks that `icp-jax plan` predicts beside those that `7b` had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu import model7b
from gpu.files import read


def run(job: dict[str, Any], keep: Any) -> dict[str, Any]:
    """Peaks of device and host: planned, seen, and the ratio seen / planned."""
    told = model7b.plan(job, str(Path(job["scratch"]) / "cache-7b"))
    seen = read(Path(job["out"]) / "7b.json").get("result", {}).get("warm", {})
    found: dict[str, Any] = {"peaks": {}, "phases": told["phases"], "memory": told["memory"]}
    for where in ("device", "host"):
        mib = round(told["peak"][where] / 2**20)
        found["peaks"][where] = {"planned_mib": mib}
        if peak := seen.get(f"peak_{where}_mib"):  # the CPU has no pool of its own
            found["peaks"][where] |= {"seen_mib": peak, "ratio": peak / max(mib, 1)}
    return found
