"""The stage `compensate`: a profile of one step at 7B's shape, and which variant is fastest."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prune_job import hf_config

from gpu import phases, rates, variants
from gpu.variants import VARIANTS, Variant

STEPS = 12  # of each variant, one after the other
ENOUGH = 15  # seconds that a variant may take with compiling; less left, and none is begun
KERNELS = 15  # of the profile, those that take the most time


def run(job: dict[str, Any], keep: Any) -> dict[str, Any]:
    """Seconds a sample of every variant, its share of the bfloat16 rate, and its profile."""
    import jax

    ends = time.monotonic() + job["seconds"]
    flop = phases.flops(job)["compensate"] / job["samples"]
    found: dict[str, Any] = {"device": jax.devices()[0].device_kind, "tflop": flop / 1e12}
    found["rate"] = rates.product("bfloat16", 256 if job["tiny"] else rates.SIZE)
    found |= {"variants": [], "left_out": []}
    for variant in VARIANTS[-2:] if job["tiny"] else VARIANTS:
        if time.monotonic() > ends - ENOUGH and not job["tiny"]:
            found["left_out"].append(variant.name)
            continue
        found["variants"].append(timed(variant, job, flop, found["rate"]))
        if "from_host" not in found:
            found["from_host"] = from_host(job, flop, found["rate"])
        keep(found)
    same = [v for v in found["variants"] if v.get("batch") == 1 and "sample" in v]
    if same:
        found["fastest"] = min(same, key=lambda v: v["sample"])["name"]
    return found


def block_of(job: dict[str, Any]) -> Any:
    """A block of the job's shape as a pure function."""
    from icp_jax.core.passes import Apply
    from icp_jax.models import make_family

    return Apply(make_family(hf_config(job)).block_at(0), "bfloat16")


def block(job: dict[str, Any]) -> tuple[Any, Any]:
    """(the block as a pure function, its random params)."""
    import jax
    import jax.numpy as jnp

    apply = block_of(job)
    x = jax.ShapeDtypeStruct((1, job["length"], hf_config(job)["hidden_size"]), "bfloat16")
    shapes = jax.eval_shape(apply.module.init, jax.random.key(0), x)["params"]

    def made(path: Any, leaf: Any) -> Any:
        if path[-1].key == "kernel":
            return variants.sample(leaf.shape, len(str(path))) * leaf.shape[0] ** -0.5
        return jnp.full(leaf.shape, float(path[-1].key == "scale"), "float32")

    return apply, jax.tree_util.tree_map_with_path(made, shapes)


def prepared(variant: Variant, job: dict[str, Any]) -> tuple[Callable[..., Any], Any, Any, Any]:
    """(step, first state, inputs, targets)."""
    apply, params = block(job)
    width = hf_config(job)["hidden_size"]
    x, y = (variants.sample((variant.batch, job["length"], width), seed) for seed in (100, 101))
    return variants.step(variant, apply), variants.start(variant, params), x, y


def timed(variant: Variant, job: dict[str, Any], flop: float, rate: float) -> dict[str, Any]:
    """Seconds of the first step, which compiles, and of a sample after that; or the error."""
    import jax

    found: dict[str, Any] = {"name": variant.name, "batch": variant.batch}
    try:
        with variants.attending(variant):
            step, state, x, y = prepared(variant, job)
            started = time.perf_counter()
            state, loss = jax.block_until_ready(step(state, x, y))
            found["first"] = time.perf_counter() - started
            started = time.perf_counter()
            for _ in range(STEPS):
                state, loss = step(state, x, y)
            jax.block_until_ready(state)
            seconds = (time.perf_counter() - started) / (STEPS * variant.batch)
            found |= {"sample": seconds, "loss": float(loss)}
            found |= {"tflops": flop / seconds / 1e12, "share": flop / seconds / rate}
            found["profile"] = profile(step, state, x, y)
    except (RuntimeError, ValueError) as error:  # no memory, no such kernel, or no profile
        found["error"] = str(error)[:500]
    return found


def from_host(job: dict[str, Any], flop: float, rate: float) -> dict[str, Any]:
    """The run's own epoch over streams in pinned host memory: with the copies of the samples."""
    import jax
    import numpy as np

    from icp_jax.streaming import storage, tune

    apply, params = block(job)
    shape = (4 if job["tiny"] else 16, job["length"], hf_config(job)["hidden_size"])
    streams = [storage.Samples(shape, np.dtype("float32"), "pinned_host") for _ in range(2)]
    for seed, stream in enumerate(streams):
        for k in range(len(stream)):
            stream[k : k + 1] = variants.sample((1, *shape[1:]), seed)
    tuning, state, times = tune.Tuning(apply, *streams), tune.start(params), []
    for _ in range(3):
        started = time.perf_counter()
        state, _ = tuning.epoch(state, np.arange(len(streams[0])), 0, len(streams[0]))
        jax.block_until_ready(state)
        times.append((time.perf_counter() - started) / len(streams[0]))
    found = {"first": times[0] * len(streams[0]), "sample": times[-1]}
    return found | {"tflops": flop / times[-1] / 1e12, "share": flop / times[-1] / rate}


def profile(step: Any, state: Any, x: Any, y: Any, steps: int = 4) -> dict[str, Any]:
    """The device's kernels in a few steps: seconds a step and share, the longest first."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                state, loss = step(state, x, y)
            jax.block_until_ready((state, loss))
        spent = sum(map(kernels, Path(folder).rglob("*.xplane.pb")), Counter())
    if not spent:
        raise RuntimeError("the profiler wrote of no kernel")
    whole = sum(spent.values())
    rows = [
        {"kernel": name[:120], "seconds": seconds / steps, "share": seconds / whole}
        for name, seconds in spent.most_common(KERNELS)
    ]
    return {"seconds": whole / steps, "kernels": rows, "count": len(spent)}


def kernels(trace: Path) -> Counter[str]:
    """Seconds by name, of what ran on the device; on a CPU of what XLA's threads ran."""
    import jax

    found: Counter[str] = Counter()
    planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
    device = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in device or [plane for plane in planes if plane.name == "/host:CPU"]:
        for line in plane.lines:
            if line.name.startswith("Stream" if device else "tf_XLA"):
                for event in line.events:
                    found[event.name] += event.duration_ns / 1e9
    return found
