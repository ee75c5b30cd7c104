"""The stage `sweep`: points of a sweep in one vmap, against as many calls of the same program."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpu import cases

SPARSITIES = (0.4, 0.5, 0.6, 0.7)
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SAMPLES, WINDOW, EPOCHS = 32, 128, 1


def run(job: dict[str, Any], keep: Any) -> dict[str, Any]:
    """Seconds with and without compiling of both ways, and how far their errors are apart."""
    import jax
    import jax.numpy as jnp

    errors, points = program(job)
    found: dict[str, Any] = {"points": len(points), "device": jax.devices()[0].device_kind}
    calls, many = jax.jit(errors), jax.jit(jax.vmap(errors))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    ways = {"calls": lambda: [calls(p) for p in points], "vmap": lambda: many(stacked)}
    results = {}
    for name, way in ways.items():
        times = []
        for _ in range(2):
            started = time.perf_counter()
            results[name] = np.asarray(jax.block_until_ready(way()))
            times.append(time.perf_counter() - started)
        found[name] = {"first": times[0], "seconds": times[1]}
        keep(found)
    found["times_faster"] = found["calls"]["seconds"] / found["vmap"]["seconds"]
    found["errors_off"] = float(np.max(np.abs(results["vmap"] / results["calls"] - 1)))
    return found


def program(job: dict[str, Any]) -> tuple[Any, list[Any]]:
    """(errors of the blocks as a function of one point, the points)."""
    import icp_jax
    from icp_jax.core.hyper import Recipe, block_orders, hyper
    from icp_jax.core.icp import icp
    from icp_jax.streaming import passes, transfer

    kind, count, length = ("llama", 4, 32) if job["tiny"] else ("opt", SAMPLES, WINDOW)
    model = icp_jax.load(cases.model(kind, Path(job["scratch"])))
    rng = np.random.default_rng(2)
    tokens = rng.integers(3, model.config["vocab_size"], (count, length), np.int32)
    family = model.family
    shapes = [model.shapes(t) for t in range(family.n_blocks)]
    recipe = Recipe(
        method="wanda" if job["tiny"] else "icp",  # compensation compiles for seconds on a CPU
        batch=transfer.batch_size(count, length),
        dtype=passes.compute_dtype("auto"),
    )
    grid = list(itertools.product(SPARSITIES, RATES))
    points = [
        hyper(family, shapes, recipe=recipe, sparsity=s, lr=lr, epochs=EPOCHS)
        for s, lr in (grid[:4] if job["tiny"] else grid)
    ]
    order = block_orders(0, family.n_blocks, EPOCHS, count)

    def errors(point: Any) -> Any:
        return icp(family, model.params, tokens, point, order, recipe)[1].error

    return errors, points
