"""What every result file says beside its numbers (command, commit, machine, versions), and the
random checkpoints that benchmarks write.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from converters import table_for
from converters.layout import plan_layout
from converters.rules import Placed
from converters.safetensors_files import Writer

RESULTS = Path(__file__).parent / "results"


def write_checkpoint(
    folder: Path, config: dict[str, Any], dtype: str, tensor: Callable[[Placed], np.ndarray]
) -> int:
    """A tied model as a Hugging Face folder, a tensor at a time; returns its bytes.

    tensor: gives a tensor in torch's order.
    """
    placed = table_for(config["model_type"]).place(config)
    placed = [p for p in placed if p.name != "lm_head.weight"]
    folder.mkdir()
    kind = np.dtype(dtype)
    layout = plan_layout({p.name: (kind, p.shape) for p in placed}, {"format": "pt"})
    writer = Writer(folder, layout)
    for p in placed:
        writer.write(p.name, tensor(p).astype(kind))
    writer.close()
    (folder / "config.json").write_text(json.dumps(config))
    return sum(e.nbytes for e in layout.entries.values())


def provenance() -> dict[str, Any]:
    """Command, commit, machine and versions."""
    from icp_jax.runs.records import versions

    here = Path(__file__).parent
    asked = ["git", "rev-parse", "HEAD"]  # COMMIT: of a copy without the repository
    said = subprocess.run(asked, cwd=here, capture_output=True, text=True, check=False).stdout
    commit = os.environ.get("COMMIT") or said.strip()
    said = list(sys.argv[1:])
    if "--folder" in said:  # where a result goes to is no part of how it came about
        del said[(at := said.index("--folder")) : at + 2]
    said = [Path(word).name if "/" in word else word for word in said]  # no paths of this machine
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *said])
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
