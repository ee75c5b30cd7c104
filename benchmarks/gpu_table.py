"""The table of a result of `bench_gpu.py`."""

from __future__ import annotations

import statistics

from prune_job import hf_config, linears

PHASES = ("dense", "compensate", "statistics", "prune", "sparse", "write")


def table(record) -> str:
    """Of every phase: seconds in all and in the median block, and that block's rates.

    The first block of a phase compiles what the plan did not. PyTorch's blocks are in the mean,
    its first uses and the reading of blocks (in `dense`) included.
    """
    # not before: the benchmark chooses its platform before JAX is imported
    from icp_jax import RunConfig
    from icp_jax.config import CalibrationConfig
    from icp_jax.models import make_family
    from icp_jax.planning import cost

    job, found, rate = record["settings"], record["prune"], record["rates"]["bfloat16"]
    family = make_family(hf_config(job))
    config = RunConfig(calibration=CalibrationConfig(samples=job["samples"]))
    tokens = job["samples"] * job["length"]
    # of two blocks: compensation is the second one's
    work = cost.flops(family, [linears(job)] * 2, config, job["length"])
    work = {p: work[p] / (1 if p == "compensate" else 2) for p in PHASES}
    torch = record.get("torch", {}).get("seconds", {})
    lines = [f"{'phase':12}{'s':>8} | a block:{'TFLOP':>8}{'s':>8}{'tokens/s':>11}"]
    lines[0] += f"{'TFLOP/s':>9}{'share':>7}"
    lines[0] += f" |{'PyTorch, s':>11}{'/ours':>7}" if torch else ""
    for p in PHASES:
        s = statistics.median(block[p] for block in found["blocks"] if p in block)
        flops = work[p] / 1e12
        line = f"{p:12}{found['phases'][p]:8.2f} |         {flops:8.1f}{s:8.3f}{tokens / s:11.0f}"
        line += f"{flops / s:9.0f}{work[p] / s / rate:7.0%}" if flops else " " * 16
        if p in torch:
            theirs = torch[p] / (record["torch"]["blocks"] - (p == "compensate"))
            line += f" |{theirs:11.3f}{theirs / s:7.1f}"
        lines.append(line)
    lines.append(f"{'other':12}{found['phases']['other']:8.2f}")
    lines.append(f"{'all':12}{found['seconds']:8.2f}")
    first = next((at for at, line in found["said"] if line.endswith("dense")), float("nan"))
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
