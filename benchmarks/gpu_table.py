"""The table of a result of `bench_gpu.py`."""

from __future__ import annotations

import statistics

from gpu.phases import PHASES, first_pass, flops


def table(record) -> str:
    """Of every phase: seconds in all and in the median block, and that block's rates.

    The first block of a phase compiles what the plan did not. PyTorch's blocks are in the mean,
    its first uses and the reading of blocks (in `dense`) included.
    """
    job, found, rate = record["settings"], record["prune"], record["rates"]["bfloat16"]
    tokens, work = job["samples"] * job["length"], flops(job)
    torch = record.get("torch", {}).get("seconds", {})
    lines = [f"{'phase':12}{'s':>8} | a block:{'TFLOP':>8}{'s':>8}{'tokens/s':>11}"]
    lines[0] += f"{'TFLOP/s':>9}{'share':>7}"
    lines[0] += f" |{'PyTorch, s':>11}{'/ours':>7}" if torch else ""
    for p in PHASES:
        s = statistics.median(block[p] for block in found["blocks"] if p in block)
        tflop = work[p] / 1e12
        line = f"{p:12}{found['phases'][p]:8.2f} |         {tflop:8.1f}{s:8.3f}{tokens / s:11.0f}"
        line += f"{tflop / s:9.0f}{work[p] / s / rate:7.0%}" if tflop else " " * 16
        if p in torch:
            theirs = torch[p] / (record["torch"]["blocks"] - (p == "compensate"))
            line += f" |{theirs:11.3f}{theirs / s:7.1f}"
        lines.append(line)
    lines.append(f"{'other':12}{found['phases']['other']:8.2f}")
    lines.append(f"{'all':12}{found['seconds']:8.2f}")
    first = first_pass(found)
    lines.append(f"{first:.0f} s until block 0 had its dense stream: planning, compiling, hashing")
    lines.append(
        f"rates: bfloat16 {rate / 1e12:.0f}, float32 {record['rates']['float32'] / 1e12:.0f} "
        f"TFLOP/s, to the card {record['rates']['to_device'] / 1e9:.0f} GB/s"
    )
    lines.append(
        f"peaks: of the pool {found['peak_device_mib']} MiB, of the card with the whole pool "
        f"{found['card_mib']} MiB, of the host {found['peak_host_mib']} MiB"
    )
    if planned := found.get("planned"):
        mib = {where: round(planned[where] / 2**20) for where in ("device", "host")}
        lines.append(f"planned: of the device {mib['device']} MiB, of the host {mib['host']} MiB")
    return "\n".join(lines)
