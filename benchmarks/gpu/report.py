"""What a folder of results says: tables as the docs show them, and what is met, point by point."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu.driver import CHECK
from gpu.files import read
from gpu.points_met import points
from gpu.stages import STAGES

Record = dict[str, Any]


def render(folder: Path) -> str:
    """Markdown: the card, a table a stage, and the points. A stage without results says why."""
    records = {stage.name: read(folder / f"{stage.name}.json") for stage in STAGES}
    check = read(folder / CHECK)
    parts = [heading(records, check)]
    for stage in STAGES:
        record = records[stage.name]
        parts.append(f"## {stage.name}\n\n{state(stage.name, record, check)}".rstrip())
        if result := record.get("result"):
            parts.append(TABLES[stage.name](result))
    told = points({name: record.get("result", {}) for name, record in records.items()})
    parts.append("## What is met\n\n" + table(("point", "asked", "found", ""), told))
    return "\n\n".join(part for part in parts if part)


def heading(records: dict[str, Record], check: Record) -> str:
    """Card, driver and versions: of the first stage that says them."""
    whole = next((r for r in records.values() if r.get("versions")), {})
    packages = ", ".join(f"{k} {v}" for k, v in whole.get("versions", {}).items())
    dropped = ", ".join(check.get("dropped", [])) or "none"
    lines = [
        f"- card and driver: {whole.get('card') or 'none'}",
        f"- machine: {whole.get('machine', 'unknown')}",
        f"- versions: {packages or 'unknown'}",
        f"- commit: {whole.get('commit') or 'unknown'}; command: `{check.get('command', '')}`",
        f"- stages dropped for want of time: {dropped}",
    ]
    if check.get("tiny"):
        lines.append("- tiny shapes: no number here says anything of a GPU's speed")
    return "# GPU check\n\n" + "\n".join(lines)


def state(name: str, record: Record, check: Record) -> str:
    """One line of a stage that is not whole; empty for one that is."""
    if "error" in record:
        return "Failed: " + record["error"].strip().splitlines()[-1]
    if "skipped" in record:
        return f"Skipped: {record['skipped']}."
    if name in check.get("dropped", []):
        return "Dropped: the time did not allow it."
    return "" if record else "Not run."


def same(result: Record) -> str:
    rows = []
    for name, case in result["cases"].items():
        ratio = case.get("perplexity_ratio")
        rows.append(
            (
                name,
                f"{case['masks_differ_first_block']:.2%}",
                f"{case['masks_differ']:.2%}",
                f"{case['masks_differ_most']:.2%}",
                f"{case['kernels_distance']:.1e}",
                f"{case['errors_off']:.1e}",
                "" if ratio is None else f"{ratio:.4f}",
                "yes" if case["met"] else "no",
            )
        )
    head = ("run", "masks differ, block 0", "all", "worst linear", "kernels' distance")
    told = table((*head, "errors off by", "perplexity, ratio", "within the limits"), rows)
    if "resumed" in result:
        same = "the same bytes" if result["resumed"]["same_bytes"] else "other bytes"
        told += f"\n\nA run that was killed and resumed gave {same} as an undisturbed one."
    return told


def seven(result: Record) -> str:
    parts = []
    rates = result["rates"]
    parts.append(
        f"Rates: bfloat16 {rates['bfloat16'] / 1e12:.3g} TFLOP/s, float32 "
        f"{rates['float32'] / 1e12:.3g}; to the card {rates['to_device'] / 1e9:.3g} GB/s, from it "
        f"{rates['to_host'] / 1e9:.3g}, from pageable memory "
        f"{rates['to_device_pageable'] / 1e9:.3g}."
    )
    for name in ("cold", "warm"):
        if run := result.get(name):
            parts.append(f"### {name} compilation cache\n\n{phases(run)}")
    if run := result.get("tight"):
        told = "it failed"
        if "seconds" in run:
            told = f"{run['seconds']:.1f} s, the host's peak {run['peak_host_mib']} MiB"
        parts.append(f"With a limit of {run['limit_gib']} GiB on pinned memory: {told}.")
    return "\n\n".join(parts)


def phases(run: Record) -> str:
    """One run by phase, and what it took in all."""
    rows = []
    for row in run["phases"]:
        rate = (f"{row['tflops']:.3g}", f"{row['share']:.0%}") if "share" in row else ("", "")
        rows.append((row["phase"], f"{row['all']:.2f}", f"{row['block']:.3f}", *rate))
    whole = run["whole"]
    pool = run["peak_device_mib"]
    beside = run.get("beside_pool_mib")
    lines = [
        table(("phase", "all, s", "a block, s", "TFLOP/s", "of the bfloat16 rate"), rows),
        f"{run['seconds']:.1f} s in all; the first pass of the first block was through after "
        f"{run['first_pass']:.1f} s. {whole['blocks']} blocks would take {whole['seconds']:.0f} s, "
        f"{whole['share_start']:.0%} of them before the first block.",
        f"Peaks: of the pool {_mib(pool)}, of CUDA beside it {_mib(beside)}, of the host "
        f"{_mib(run['peak_host_mib'])}.",
    ]
    return "\n\n".join(lines)


def planned(result: Record) -> str:
    rows = [
        (
            where,
            f"{peak['planned_mib']}",
            _number(peak.get("seen_mib"), "d"),
            _number(peak.get("ratio"), ".2f"),
        )
        for where, peak in result["peaks"].items()
    ]
    return table(("peak", "planned, MiB", "seen, MiB", "seen / planned"), rows)


def compensate(result: Record) -> str:
    rows = []
    timed = [*result["variants"]]
    if "from_host" in result:
        timed.append({"name": "as it runs, streams in pinned memory", **result["from_host"]})
    for v in timed:
        if "sample" not in v:
            rows.append((v["name"], "failed", "", ""))
        else:
            told = (f"{v['sample'] * 1e3:.2f}", f"{v['tflops']:.3g}", f"{v['share']:.0%}")
            rows.append((v["name"], *told))
    parts = [table(("a step of compensation", "ms a sample", "TFLOP/s", "of the rate"), rows)]
    if "fastest" in result:
        parts.append(f"Fastest with one sample a step: {result['fastest']}.")
    if result["left_out"]:
        parts.append(f"Left out for want of time: {', '.join(result['left_out'])}.")
    if found := result["variants"][0].get("profile"):
        kernels = [
            (f"`{k['kernel']}`", f"{k['seconds'] * 1e3:.3f}", f"{k['share']:.0%}")
            for k in found["kernels"]
        ]
        head = f"kernel, {result['variants'][0]['name']}"
        parts.append(table((head, "ms a step", "share"), kernels))
    return "\n\n".join(parts)


def torch(result: Record) -> str:
    if "block" not in result:
        return ""
    rows = [(phase, f"{seconds:.3f}") for phase, seconds in result["block"].items()]
    return table(("phase in PyTorch", "a block, s"), rows)


def tests(result: Record) -> str:
    if "collected" in result:
        return f"{result['collected']} tests were collected, and not run."
    if "so_far" in result:
        return "So far:\n" + "\n".join(f"- {line}" for line in result["so_far"])
    told = f"{result['passed']} passed, {result['failed']} failed, {result['skipped']} skipped"
    return f"{told}, in {result['seconds']:.0f} s." + "".join(f"\n- {n}" for n in result["said"])


def sweep(result: Record) -> str:
    rows = [
        (way, f"{result[way]['first']:.2f}", f"{result[way]['seconds']:.2f}")
        for way in ("calls", "vmap")
        if way in result
    ]
    told = table((f"{result['points']} points", "with compiling, s", "s"), rows)
    if "times_faster" in result:
        told += f"\n\nvmap is {result['times_faster']:.2f} times as fast; the errors are off by "
        told += f"{result['errors_off']:.1e} at most."
    return told


TABLES: dict[str, Callable[[Record], str]] = {
    "same": same,
    "7b": seven,
    "plan": planned,
    "compensate": compensate,
    "torch": torch,
    "tests": tests,
    "sweep": sweep,
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]] | Iterator[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mib(count: int | None) -> str:
    return "not known" if count is None else f"{count} MiB"


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)
