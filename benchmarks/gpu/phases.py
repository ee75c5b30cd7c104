"""What a run's seconds by phase say: FLOP/s, the share of the card's rate, a longer run's time."""

from __future__ import annotations

import statistics
from typing import Any

from prune_job import hf_config, linears

PHASES = ("dense", "compensate", "statistics", "prune", "sparse", "write")


def flops(job: dict[str, Any]) -> dict[str, float]:
    """FLOPs of one block, by phase; in `statistics` and `prune` those are of float32."""
    # not before: a benchmark chooses its platform before JAX is imported
    from icp_jax import RunConfig
    from icp_jax.config import CalibrationConfig, filled
    from icp_jax.models import make_family
    from icp_jax.planning import cost

    config = filled(RunConfig(calibration=CalibrationConfig(samples=job["samples"])))
    # of two blocks: compensation is the second one's
    load = cost.load(config, job["length"])
    work = cost.flops(make_family(hf_config(job)), [linears(job)] * 2, load)
    return {p: work[p] / (1 if p == "compensate" else 2) for p in PHASES}


def by_phase(job: dict[str, Any], run: dict[str, Any], rate: float) -> list[dict[str, Any]]:
    """Of every phase: seconds in all, those of the median block, its FLOP/s, and their share.

    rate: of bfloat16 products, which the shares are of. The first block is left out of the median
    where there are others: it compiles what the plan did not.
    """
    work, rows = flops(job), []
    for phase in PHASES:
        seconds = [block[phase] for block in run["blocks"] if phase in block]
        median = statistics.median(seconds[1:] if len(seconds) > 2 else seconds)
        row = {"phase": phase, "all": sum(seconds), "block": median, "tflop": work[phase] / 1e12}
        if work[phase] and median:
            row |= {"tflops": work[phase] / median / 1e12, "share": work[phase] / median / rate}
        rows.append(row)
    return rows


def first_pass(run: dict[str, Any]) -> float:
    """Seconds from the start until the dense stream was through the first block."""
    return next((at for at, line in run["said"] if "block 0 dense" in line), float("nan"))


def whole(rows: list[dict[str, Any]], run: dict[str, Any], blocks: int) -> dict[str, float]:
    """The seconds that a run of so many blocks takes, and the share of them before the first."""
    start = first_pass(run) - run["blocks"][0]["dense"]
    rest = run["seconds"] - start - sum(row["all"] for row in rows)
    seconds = start + blocks * (sum(row["block"] for row in rows) + rest / len(run["blocks"]))
    return {"blocks": blocks, "seconds": seconds, "start": start, "share_start": start / seconds}
