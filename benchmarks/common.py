"""What every result file says beside its numbers: command, commit, machine, versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def provenance() -> dict[str, Any]:
    """Command, commit, machine and versions."""
    from icp_jax.run import versions

    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    ).stdout.strip()
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {"command": command, "commit": commit, "machine": machine(), "versions": versions()}


def machine() -> str:
    """Processor, cores, and the accelerator where there is one."""
    import jax

    model = platform_model()
    device = jax.devices()[0]
    extra = "" if device.platform == "cpu" else f", {device.device_kind}"
    return f"{model}, {os.cpu_count()} cores{extra}"


def platform_model() -> str:
    """The processor's name and its widest vectors, where the system says them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    said = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    flags = said.get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2") if name in flags), "no avx2")
    return f"{said.get('model name', 'CPU')} ({vectors})"


def write(name: str, record: dict[str, Any], folder: Path = RESULTS) -> Path:
    """A result file; its path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path
