"""The record of `icp-jax distill`: that of the run that pruned the folder, and what came after."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import jax

from converters.files import RECORD
from icp_jax.config import RunConfig
from icp_jax.runs.fingerprint import Weights
from icp_jax.runs.records import peaks, versions
from icp_jax.runs.verify_export import Counted

Record = dict[str, Any]


def known(folder: Path) -> Record:
    """The record of the run that pruned a folder; empty without one."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    usable = isinstance(found, dict) and isinstance(found.get("config"), dict)
    return found if usable and isinstance(found.get("blocks"), list) else {}


def record(folder: Path, config: RunConfig, counted: Counted) -> Record:
    """The record of the run that pruned the folder, or one without blocks, and what is counted."""
    used = ("model", "calibration", "global_pass", "dtype", "seed")
    own = {name: value for name, value in dataclasses.asdict(config).items() if name in used}
    before = known(folder) or {"config": own, "blocks": []}
    counts = {"sparsity": counted.sparsity, "zeros": counted.zeros, "size": counted.size}
    return {**before, "texts": None, **counts}  # the texts were those of other weights


def circumstances(pruned: str, dense: str) -> Record:
    """Models, versions, device and memory of the distillation."""
    return {
        "pruned": pruned,
        "dense": dense,
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        **peaks(),
    }


def inputs(weights: list[Weights], samples: Record) -> Record:
    """The digests of the weights of the pruned and of the dense model, and of the windows."""
    digests = {
        f"{who} {name}": digest
        for who, of in zip(("pruned", "dense"), weights, strict=True)
        for name, digest in of.digests.items()
        if name != "config.json"
    }
    return {"weights": digests, **samples}


def command(pruned: str, config: RunConfig) -> str:
    """The command that does it again."""
    given, data = config.global_pass, config.calibration
    options: Record = {"data": data.data, "samples": data.samples, "seq-len": data.seq_len}
    options |= {"epochs": given.epochs, "lr": given.lr, "batch": given.batch, "seed": config.seed}
    words = ["icp-jax", "distill", pruned, config.model, "--out", config.out]
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", str(value)]
    return shlex.join(words)
