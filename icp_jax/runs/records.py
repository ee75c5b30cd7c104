"""JSON records of a run: block reports, versions, peak memory and digests."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from converters.files import blocks_of_bytes
from icp_jax.core.outcomes import BlockReport, Compensation, LayerReport
from icp_jax.streaming import storage

PACKAGES = ["icp-jax", "jax", "jaxlib", "flax", "optax", "transformers", "safetensors", "numpy"]
# libraries that determine a GPU's results
PACKAGES += ["jax-cuda12-plugin", "nvidia-cublas-cu12", "nvidia-cudnn-cu12"]
PACKAGES += ["jax-cuda13-plugin", "nvidia-cublas", "nvidia-cudnn-cu13"]
TUNINGS = ("compensation", "retune")  # fields of BlockReport


def block_record(block: BlockReport) -> dict[str, Any]:
    """A block's report as JSON values; NaN and infinity become null."""
    record = dataclasses.asdict(block)
    for kind in TUNINGS:
        tuned = getattr(block, kind)
        record[kind] = None if tuned is None else tuned._asdict()
    record["seconds"] = {phase: round(s, 3) for phase, s in block.seconds.items()}
    for layer in record["layers"]:
        layer["sparsity"] = layer["zeros"] / layer["size"]
    return finite(record)


def read_block(record: dict[str, Any]) -> BlockReport:
    """Invert `block_record`; null becomes NaN."""
    names = [field.name for field in dataclasses.fields(LayerReport)]
    layers = [LayerReport(**_tuples({k: layer[k] for k in names})) for layer in record["layers"]]
    numbers = {k: math.nan if v is None else v for k, v in record.items()}
    found = {kind: record.get(kind) for kind in TUNINGS}  # earlier versions have no re-tune
    tuned: dict[str, Any] = {
        k: None if v is None else Compensation(**_tuples(v)) for k, v in found.items()
    }
    return BlockReport(**{**numbers, "layers": tuple(layers), **tuned})


def finite(value: Any) -> Any:
    """JSON values in which NaN and infinity are null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    def read(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(read(v) for v in value)
        return math.nan if value is None else value

    return {k: read(v) for k, v in record.items()}


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peaks() -> dict[str, int | None]:
    """Peak memory so far in MiB; None for a device that is the host."""
    device = storage.device_peak()
    return {
        "peak_host_mib": round(peak_mib()),
        "peak_device_mib": None if device is None else round(device / 2**20),
    }


def peak_mib() -> float:
    """The peak memory of this process in MiB."""
    with contextlib.suppress(OSError, StopIteration):
        # getrusage also counts the memory of the parent process before exec
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM:")).split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def reset_peak() -> None:
    """Let `peak_mib` count from now on, where the system allows it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def sha256(*parts: Path | bytes) -> str:
    """The hexadecimal digest of the concatenated files and bytes."""
    digest = hashlib.sha256()
    for part in parts:
        for chunk in [part] if isinstance(part, bytes) else blocks_of_bytes(part):
            digest.update(chunk)
    return digest.hexdigest()


def canonical(record: Any) -> bytes:
    """A record as bytes that are equal for equal values."""
    return json.dumps(record, sort_keys=True).encode()
