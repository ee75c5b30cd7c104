"""The stage `7b`: blocks of Llama-2-7B's shape from folder to folder, with JAX's pool capped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from prune_job import SHAPES

from gpu import card, model7b, phases
from gpu.files import write

SPARE = 2  # GiB of pinned memory beside the streams: batches and weights on their way


def run(job: dict[str, Any], keep: Any) -> dict[str, Any]:
    """Rates of the card; the run with an empty compilation cache, and with what that left."""
    named = ("shape", "blocks", "samples", "length", "device_mib", "options", "seed")
    found: dict[str, Any] = {"settings": {name: job[name] for name in named}}
    found["rates"] = rates(job)
    keep(found)
    model7b.checkpoint(job)
    cache = str(Path(job["scratch"]) / "cache-7b")  # that of the other stages is not empty
    for name in ("cold", "warm"):
        found[name] = measured(job, cache, found["rates"]["bfloat16"])
        keep(found)
    if not job["tiny"]:
        found["tight"] = tight(job, cache)
    return found


def measured(job: dict[str, Any], cache: str, rate: float) -> dict[str, Any]:
    """One run, and what its seconds say."""
    told = model7b.prune(job, cache)
    told["first_pass"] = phases.first_pass(told)
    told["phases"] = phases.by_phase(job, told, rate)
    told["whole"] = phases.whole(told["phases"], told, job["whole"])
    if told["card_mib"] and job["device_mib"]:
        told["beside_pool_mib"] = told["card_mib"] - told["card_before_mib"] - job["device_mib"]
    return told


def tight(job: dict[str, Any], cache: str) -> dict[str, Any]:
    """The run with a limit on pinned memory that is little above the streams.

    XLA takes pinned memory in ever doubled pieces, up to a limit that is the whole host's if
    nothing else is said: streams of 8 GiB and a little beside them take 16.
    """
    streams = 2 * job["samples"] * job["length"] * SHAPES[job["shape"]].hidden * 4
    limit = -(-streams >> 30) + SPARE
    try:
        told = model7b.prune(job, cache, {"XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB": str(limit)})
    except RuntimeError as error:
        return {"limit_gib": limit, "error": str(error)[-1500:]}
    return {"limit_gib": limit, **{key: told[key] for key in ("seconds", "peak_host_mib")}}


def rates(job: dict[str, Any]) -> dict[str, float]:
    """What the card does in a second, measured by a process that then lets go of it."""
    given = Path(job["scratch"]) / "rates-job.json"
    write(given, job)
    code = [sys.executable, "-m", "gpu.rates", str(given)]
    said = subprocess.run(
        code, env=card.environment(job["cache"]), stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return json.loads(said.splitlines()[-1])
