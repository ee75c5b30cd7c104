"""The random checkpoint, the tokens and the commands that the stages at 7B share."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from prune_job import hf_config

from gpu import card

TOKENS = "ids.npy"


def checkpoint(job: dict[str, Any]) -> Path:
    """The model's folder, made if it is not there; beside it lie the tokens.

    Its tensors are windows of one pool of random numbers, stored as `job["stored"]` says.
    """
    import ml_dtypes  # noqa: F401  NumPy knows bfloat16 by it

    folder, dtype = Path(job["scratch"]) / "model", job["stored"]
    if folder.exists():
        return folder
    rng = np.random.default_rng(job["seed"])
    size = 1 << (26 if job["shape"].endswith("b") else 16)
    pool = rng.standard_normal(size + size // 4, np.float32)
    scaled: dict[float, np.ndarray] = {}

    def tensor(p: Any) -> np.ndarray:
        count = int(np.prod(p.shape))
        if len(p.shape) == 1:
            return 0.02 * pool[:count] + (1 if "norm.weight" in p.name else 0)
        scale = p.shape[-1] ** -0.5
        if scale not in scaled:
            scaled[scale] = (pool * np.float32(scale)).astype(dtype)
        if count > len(pool):  # an embedding
            return np.resize(scaled[scale], p.shape)
        start = int(rng.integers(0, len(pool) - count))
        return scaled[scale][start : start + count].reshape(p.shape)

    part = folder.with_name("model-part")
    shutil.rmtree(part, ignore_errors=True)
    common.write_checkpoint(part, hf_config(job), dtype, tensor)
    count = 2 * job["samples"] * job["length"]
    ids = np.random.default_rng(1).integers(3, job["vocab"], count, np.int32)
    np.save(folder.with_name(TOKENS), ids)
    part.rename(folder)
    return folder


def words(job: dict[str, Any], *command: str) -> list[str]:
    """`icp-jax prune`, or `plan`, of the job's model with its settings. command: with its OUT."""
    model = checkpoint(job)
    found = [sys.executable, "-m", "icp_jax.cli", command[0], str(model), *command[1:], "--json"]
    found += ["--data", str(model.with_name(TOKENS)), "--samples", str(job["samples"])]
    return [*found, "--seq-len", str(job["length"]), *job["options"]]


def prune(job: dict[str, Any], cache: str, more: dict[str, str] | None = None) -> dict[str, Any]:
    """`icp-jax prune` from folder to folder: its record, what it said when, the card's peak.

    The new folder is removed. cache: where compiled programs are kept; more: variables of the
    environment. Raises RuntimeError.
    """
    out = Path(job["scratch"]) / "pruned"
    code = words(job, "prune", str(out))
    variables = card.environment(cache, job["device_mib"]) | (more or {})
    before = int(card.ask("memory.used") or 0)
    started, said = time.perf_counter(), []

    def listen() -> None:  # a line a phase
        assert run.stderr is not None
        for line in run.stderr:
            said.append((round(time.perf_counter() - started, 2), line.rstrip()))

    with card.most_used() as used:
        run = subprocess.Popen(
            code, env=variables, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        listener = threading.Thread(target=listen)
        listener.start()
        status = run.wait()
        listener.join()
        seconds = time.perf_counter() - started
    if status:
        lines = "\n".join(line for _, line in said[-20:])
        raise RuntimeError(f"icp-jax prune ended with status {status}\n{lines}")
    record = json.loads((out / "icp_run.json").read_text())
    shutil.rmtree(out)
    blocks = [block["seconds"] for block in record["blocks"]]
    return {
        "seconds": seconds,
        "said": said,
        "card_mib": used[0],
        "card_before_mib": before,
        **{key: record[key] for key in ("peak_device_mib", "peak_host_mib", "sparsity")},
        "memory": record["config"]["memory"],
        "remedies": record["remedies"],
        "errors": [block["error"] for block in record["blocks"]],
        "blocks": blocks,
    }


def plan(job: dict[str, Any], cache: str) -> dict[str, Any]:
    """What `icp-jax plan` says of the same run. Raises RuntimeError with its own words."""
    code = words(job, "plan")
    variables = card.environment(cache, job["device_mib"])
    done = subprocess.run(code, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)
