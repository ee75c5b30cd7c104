"""The points that a check is to decide: what is asked, what was found, and whether it is met."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

WARM, COLD = 15, 40  # seconds until the first pass of the first block
POOL = 4096  # MiB at 7B
RATE = 0.6  # of bfloat16 products, in compensation
HOST = 1.2  # of the planned peak
TIMES = 3  # as fast as PyTorch over the whole run

Point = tuple[str, str, str, str]  # what, asked, found, met or not or not measured


def points(results: dict[str, dict[str, Any]]) -> list[Point]:
    """All points, in one order; one that nothing was measured for says so."""
    return [*_same(results["same"]), *_seven(results), *_torch(results), *_tests(results["tests"])]


def _point(what: str, asked: str, found: Any, met: bool, form: str = "{}") -> Point:
    if found is None:
        return what, asked, "", "not measured"
    return what, asked, form.format(found), "met" if met else "NOT MET"


def _same(result: dict[str, Any]) -> Iterator[Point]:
    cases = result.get("cases")
    good = sum(case["met"] for case in cases.values()) if cases else 0
    told = f"{good} of {len(cases)}" if cases else None
    yield _point("the CPU's results", "all runs", told, good == len(cases or ()))
    same = result.get("resumed", {}).get("same_bytes")
    yield _point("killed and resumed", "the same bytes", same, bool(same))


def _seven(results: dict[str, dict[str, Any]]) -> Iterator[Point]:
    runs = results["7b"]
    for name, limit in (("warm", WARM), ("cold", COLD)):
        found = runs.get(name, {}).get("first_pass")
        what = f"first pass of the first block, {name} cache"
        yield _point(what, f"within {limit} s", found, (found or 0) <= limit, "{:.1f} s")
    run = runs.get("warm") or runs.get("cold") or {}
    pool = run.get("peak_device_mib")
    yield _point("the pool at 7B", f"under {POOL} MiB", pool, (pool or 0) < POOL, "{} MiB")
    share = _phases(run).get("compensate", {}).get("share")
    asked = f"{RATE:.0%} of the bfloat16 rate"
    yield _point("compensation", asked, share, (share or 0) >= RATE, "{:.0%}")
    ratio = results["plan"].get("peaks", {}).get("host", {}).get("ratio")
    yield _point("the host's peak", f"at most {HOST} × plan", ratio, (ratio or 0) <= HOST, "{:.2f}")


def _torch(results: dict[str, dict[str, Any]]) -> Iterator[Point]:
    run, theirs = results["7b"].get("warm", {}), results["torch"].get("block", {})
    ours = _phases(run)
    for phase in ("dense", "compensate", "statistics", "prune", "sparse"):
        times = None
        if phase in ours and phase in theirs:
            times = theirs[phase] / max(ours[phase]["block"], 1e-9)
        yield _point(f"{phase} beside PyTorch", "as fast", times, (times or 0) >= 1, "{:.2f} ×")
    times, whole = None, results["torch"].get("whole")
    if run and whole:
        times = whole["seconds"] / run["whole"]["seconds"]
    what = "the whole run beside PyTorch"
    yield _point(what, f"{TIMES} × as fast", times, (times or 0) >= TIMES, "{:.2f} ×")


def _tests(result: dict[str, Any]) -> Iterator[Point]:
    failed = result.get("failed")
    yield _point("`pytest -m gpu`", "none failed", failed, failed == 0, "{} failed")


def _phases(run: dict[str, Any]) -> dict[str, Any]:
    return {row["phase"]: row for row in run.get("phases", ())}
