"""Fingerprint everything that a result depends on: settings, weights, tokens and versions."""

from __future__ import annotations

import json
import platform
from typing import Any

import jax
import numpy as np

from icp_jax import backend
from icp_jax.backend.compile_cache import features
from icp_jax.errors import Kept
from icp_jax.runs.records import sha256, versions
from icp_jax.streaming.background import in_threads
from icp_jax.streaming.source import FolderSource

# Settings that may differ between runs: only locations; their content is compared by digest.
FREE = ("model", "out", "calibration.data", "memory.streams", "memory.device", "memory.host")
# Prefixes of the arithmetic flags in /proc/cpuinfo; other flags vary with the kernel.
VECTORS = (
    "sse",
    "ssse",
    "avx",
    "fma",
    "f16c",
    "amx",
    "asimd",
    "sve",
    "sme",
    "neon",
    "bf16",
    "i8mm",
)
SHOWN = 4  # differences shown in a message
DIGEST = 64  # characters of a SHA-256 digest, which are not shown


class Weights:
    """The source files that a result depends on, checked for changes during a run."""

    def __init__(self, source: FolderSource):
        config = source.folder / "config.json"
        self.files = {**source.weights(), **({config.name: config} if config.is_file() else {})}
        self._seen = self._look()
        digests = in_threads(sha256, list(self.files.values()))
        self.digests = dict(zip(self.files, digests, strict=True))

    def _look(self) -> list[tuple[int, ...]]:
        stats = [path.stat() for path in self.files.values()]
        return [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in stats]

    def check(self) -> None:
        """Raise Kept if a file changed since its digest was computed."""
        try:
            if (seen := self._look()) == self._seen:
                return
            changed = [n for n, p in self.files.items() if sha256(p) != self.digests[n]]
        except FileNotFoundError as error:
            raise Kept(f"{error.filename} was removed during the run: restore it") from None
        if changed:
            raise Kept(f"{', '.join(changed)} changed during the run: restore the original")
        self._seen = seen


def fingerprint(
    settings: dict[str, Any], weights: Weights, samples: dict[str, Any]
) -> dict[str, Any]:
    """Fingerprint as name -> value.

    settings: resolved, by dotted name. samples: record of the calibration samples.
    """
    found = {name: value for name, value in settings.items() if name not in FREE}
    found |= {f"source {name}": digest for name, digest in weights.digests.items()}
    found |= samples | {"device": jax.devices()[0].device_kind}
    if backend.is_host():
        found["processor"] = _arithmetic()
    return found | {f"version of {name}": value for name, value in versions().items()}


def common(settings: dict[str, Any], weights: Weights) -> np.ndarray:
    """Bytes that must be equal on all hosts of a run: the fingerprint without samples and hardware.

    settings: resolved, but before planning, which depends on each host's memory.
    """
    found = fingerprint(settings, weights, {})
    own = ("device", "processor")
    shared = {name: value for name, value in found.items() if name not in own}
    return np.frombuffer(json.dumps(shared, sort_keys=True).encode(), np.uint8)


def _arithmetic() -> str:
    """The processor's vector instructions: they determine the order of sums, hence rounding."""
    words = sorted(x for x in set(features().split()) if x.startswith(VECTORS))
    return " ".join([platform.machine(), *words])


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The differences between two fingerprints in one line; empty if there are none."""
    said = []
    for name in dict.fromkeys([*new, *old]):
        was, now = old.get(name), new.get(name)
        if was != now:
            digest = len(str(now or was)) == DIGEST
            said.append(f"{name} changed" if digest else f"{name} was {was}, is {now}")
    more = f" and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return "; ".join(said[:SHOWN]) + more
