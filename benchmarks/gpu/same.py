"""The stage `same`: does this device give what the CPU gave?

The CPU's results are `gpu/same_cpu.json`, written by this file
(`gpu_check.py --write-reference`). Of every linear it holds a sketch, see `gpu.sketch`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

from gpu import cases, sketch
from gpu.cases import CASES, Case
from gpu.files import read, write

ENOUGH = 25  # seconds that a case may take with compiling; less left, and none is begun
REFERENCE = Path(__file__).with_name("same_cpu.json")
# Rounding swaps a few entries of the masks, and what the walk does later in those columns
# follows: of all entries; of a block's error; of the perplexity.
LIMITS = {"float32": (0.01, 0.01, 0.01), "bfloat16": (0.2, 0.05, 0.05)}


def run(job: dict[str, Any], keep: Any) -> dict[str, Any]:
    """Every case against the reference, and a killed run that is resumed."""
    import jax

    wanted = read(REFERENCE)["cases"]
    ends = time.monotonic() + job["seconds"]
    found: dict[str, Any] = {"device": jax.devices()[0].device_kind, "cases": {}, "left_out": []}
    scratch = Path(job["scratch"])
    for case in cases.TINY if job["tiny"] else CASES:
        if time.monotonic() > ends - ENOUGH and not job["tiny"]:
            found["left_out"].append(case.name)
            continue
        found["cases"][case.name] = against(wanted[case.name], measure(case, scratch), case.dtype)
        if case == cases.KILLED:
            found["resumed"] = resumed(scratch)
        keep(found)
    return found


def write_reference() -> Path:
    """The results of this machine's CPU, into the committed file."""
    with tempfile.TemporaryDirectory() as scratch:
        measured = {case.name: measure(case, Path(scratch)) for case in CASES}
    for one in measured.values():
        del one["seconds"]
    write(REFERENCE, {**common.provenance(), "cases": measured})
    return REFERENCE


def measure(case: Case, scratch: Path) -> dict[str, Any]:
    """One case: sketches of its linears, the errors of its blocks, the perplexity, the seconds."""
    from icp_jax import api
    from icp_jax.runs.run import prune_folder

    out = scratch / case.folder
    started = time.perf_counter()
    prune_folder(cases.config(case, scratch, out))
    seconds = time.perf_counter() - started
    _, windows = cases.samples(case.model, scratch)
    perplexity = None
    if windows is not None and not case.packed:
        perplexity = api.evaluate(out, windows, dtype="float32").perplexity
    return {
        "linears": {name: sketch.of(name, kernel) for name, kernel in kernels(case, out).items()},
        "errors": [block["error"] for block in cases.record(out)["blocks"]],
        "perplexity": perplexity,
        "seconds": round(seconds, 2),
    }


def kernels(case: Case, out: Path) -> dict[str, np.ndarray]:
    """The pruned kernels by `block.linear`; of a packed export the levels by tensor."""
    from safetensors.numpy import load_file

    from icp_jax.runs.packed import unpack_bits
    from icp_jax.streaming.source import FolderSource

    if case.packed:
        tensors = load_file(out / "model.safetensors")
        packed = {k: v for k, v in tensors.items() if k.endswith("_packed")}
        return {f"{at(k)}.{k}": unpack_bits(v, 4, 8 * v.shape[1]) for k, v in packed.items()}
    source = FolderSource(out)
    return {
        f"{t}.{spec.name}": np.asarray(source.block(t)[spec.name]["kernel"], np.float32)
        for t in range(source.family.n_blocks)
        for spec in source.family.linears
    }


def at(tensor: str) -> int:
    """The block that a tensor of the Llama belongs to."""
    return int(tensor.split(".layers.")[1].split(".")[0])


def against(wanted: dict[str, Any], found: dict[str, Any], dtype: str) -> dict[str, Any]:
    """One case beside the reference. met: masks, errors and perplexity are within the limits."""
    if wanted["linears"].keys() != found["linears"].keys():
        raise ValueError("the reference is of other linears: run --write-reference on a CPU")
    pairs = {
        name: sketch.compare(linear, found["linears"][name])
        for name, linear in wanted["linears"].items()
    }
    masks = {name: differ for name, (differ, _) in pairs.items()}
    first = [differ for name, differ in masks.items() if name.startswith("0.")]
    ratios = np.array(found["errors"]) / np.array(wanted["errors"])
    told = {
        "masks_differ": float(np.mean(list(masks.values()))),
        "masks_differ_first_block": float(np.mean(first)),
        "masks_differ_most": max(masks.values()),
        "masks_equal": sum(differ == 0 for differ in masks.values()),
        "linears": len(masks),
        "zeros_equal": all(
            linear["zeros"] == found["linears"][name]["zeros"]
            for name, linear in wanted["linears"].items()
        ),
        "kernels_distance": float(np.mean([distance for _, distance in pairs.values()])),
        "kernels_distance_most": max(distance for _, distance in pairs.values()),
        "errors_off": float(np.max(np.abs(ratios - 1))),
        "seconds": found["seconds"],
    }
    most, error, perplexity = LIMITS[dtype]
    met = told["masks_differ"] <= most and told["errors_off"] <= error and told["zeros_equal"]
    if found["perplexity"] is not None:
        told["perplexity"] = found["perplexity"]
        told["perplexity_ratio"] = found["perplexity"] / wanted["perplexity"]
        met = met and abs(told["perplexity_ratio"] - 1) <= perplexity
    return {**told, "met": bool(met)}


def resumed(scratch: Path) -> dict[str, Any]:
    """A run that is killed in its second block and resumed, against the undisturbed one."""
    from icp_jax.runs.run import prune_folder

    killed, whole = scratch / "killed", scratch / cases.KILLED.folder
    given = cases.config(cases.KILLED, scratch, killed)
    command = [sys.executable, "-m", "icp_jax.cli", *cases.words(given)]
    child = subprocess.Popen(
        command, env=dict(os.environ), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert child.stderr is not None
    lines = []
    for line in child.stderr:
        lines.append(line)
        if "block 1 statistics" in line:
            child.send_signal(signal.SIGKILL)
    if child.wait() != -signal.SIGKILL:
        raise RuntimeError("the run that was to be killed ended by itself:\n" + "".join(lines))
    said: list[str] = []
    prune_folder(given, resume=True, say=said.append)
    same = [(folder / "model.safetensors").read_bytes() for folder in (whole, killed)]
    return {"same_bytes": same[0] == same[1], "said": said}
