"""The stage `7b`: blocks of Llama-2-7B's shape from folder to folder, with JAX's pool capped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu import card, model7b, phases
from gpu.files import write


def run(job: dict[str, Any], keep: Any) -> dict[str, Any]:
    """Rates of the card; the run with an empty compilation cache, and with what that left."""
    named = ("shape", "blocks", "samples", "length", "device_mib", "options", "seed")
    found: dict[str, Any] = {"settings": {name: job[name] for name in named}}
    found["rates"] = rates(job)
    keep(found)
    model7b.checkpoint(job)
    cache = str(Path(job["scratch"]) / "cache-7b")  # that of the other stages is not empty
    for name in ("cold", "warm"):
        found[name] = model7b.prune(job, cache)
        told = found[name]
        told["first_pass"] = phases.first_pass(told)
        told["phases"] = phases.by_phase(job, told, found["rates"]["bfloat16"])
        told["whole"] = phases.whole(told["phases"], told, job["whole"])
        if told["card_mib"] and job["device_mib"]:
            told["beside_pool_mib"] = told["card_mib"] - told["card_before_mib"] - job["device_mib"]
        keep(found)
    return found


def rates(job: dict[str, Any]) -> dict[str, float]:
    """What the card does in a second, measured by a process that then lets go of it."""
    given = Path(job["scratch"]) / "rates-job.json"
    write(given, job)
    code = [sys.executable, "-m", "gpu.rates", str(given)]
    said = subprocess.run(
        code, env=card.environment(job["cache"]), stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return json.loads(said.splitlines()[-1])
