"""A sweep of 20 points, sparsity × alpha: as commands, as one command, as calls, as one program.

    python benchmarks/bench_sweep.py [--stories FOLDER --text FILE]

Every side is a process of its own (the commands are 20), with an empty compile cache at its
start: `commands` runs `icp-jax prune` once a point, `sweep` one `icp-jax sweep`, which also
evaluates every point on as many tokens as it calibrates with, `calls` the jitted `core.icp` once a
point, `map` one `lax.map` over the points, `vmap` one `vmap`. Seconds of the whole side and the
peak of its memory, in turns, medians; and how far the errors after the last block are from those of
the calls. Then the seconds of `icp-jax sweep` with 1 to 64 points. On the bundled model, or on
stories260K with a text of TinyStories.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SPARSITIES, ALPHAS = (0.5, 0.6, 0.7, 0.8), (0.7, 0.8, 0.9, 0.95, 1.0)
POINTS = [(s, a) for s in SPARSITIES for a in ALPHAS]
MANY = [(s, a) for s in np.linspace(0.4, 0.8, 8) for a in np.linspace(0.7, 1.0, 8)]
COUNTS = (1, 2, 4, 8, 16, 32, 64)  # of MANY, for the growth
SIDES = ("commands", "sweep", "calls", "map", "vmap")
RATE, EPOCHS, GAMMA, SAMPLES, WINDOW = 1e-3, 1, 1.0, 32, 128
LIMIT = 1800  # seconds for a side
SWEEP = """
from icp_jax import CalibrationConfig, CompensateConfig, RunConfig
from icp_jax.sweeps import Sweep

def get_sweep():
    data = CalibrationConfig({tokens!r}, samples={samples}, seq_len={window})
    base = RunConfig(
        model={model!r},
        calibration=data,
        compensate=CompensateConfig(epochs={epochs}, lr={rate}, gamma={gamma}),
    )
    points = [{{"prune.sparsity": s, "prune.alpha": a}} for s, a in {points}]
    return Sweep(base, points, data={tokens!r}, seq_len={window})
"""


def child(side: str, model: str, tokens: str) -> None:
    """One side in this process; prints its errors `[points, blocks]` as JSON."""
    import jax

    import icp_jax
    from icp_jax.core.hyper import Recipe, block_orders, hyper, stack
    from icp_jax.core.icp import icp
    from icp_jax.streaming import passes
    from icp_jax.streaming.transfer import batch_size

    loaded, windows = icp_jax.load(model), np.load(tokens)
    family = loaded.family
    shapes = [loaded.shapes(t) for t in range(family.n_blocks)]
    made = Recipe(batch=batch_size(*windows.shape), dtype=passes.compute_dtype("auto"))
    points = [
        hyper(family, shapes, recipe=made, sparsity=s, alpha=a, lr=RATE, gamma=GAMMA, epochs=EPOCHS)
        for s, a in POINTS
    ]
    order = block_orders(0, family.n_blocks, EPOCHS, len(windows))

    @jax.jit
    def errors(point: Any) -> jax.Array:
        return icp(family, loaded.params, windows, point, order, made)[1].error

    if side == "calls":
        found = [errors(point) for point in points]
    elif side == "map":
        found = jax.jit(lambda p: jax.lax.map(errors, p))(stack(points))
    else:
        found = jax.jit(jax.vmap(errors))(stack(points))
    print(json.dumps(np.asarray(found).tolist()))


def commands(model: str, tokens: str, folder: Path, env: dict[str, str]) -> list[list[float]]:
    """Every point by the command line; the errors of its blocks."""
    found = []
    for k, (sparsity, alpha) in enumerate(POINTS):
        out = folder / f"out{k}"
        asked = ["prune", model, str(out), "--sparsity", str(sparsity)]
        asked += ["--data", tokens, "--samples", str(SAMPLES)]
        asked += ["--seq-len", str(WINDOW), "--compensate.lr", str(RATE)]
        asked += ["--prune.alpha", str(alpha)]
        asked += ["--compensate.gamma", str(GAMMA), "--compensate.epochs", str(EPOCHS)]
        run([sys.executable, "-m", "icp_jax.cli", *asked], env)
        record = json.loads((out / "icp_run.json").read_text())
        found.append([block["error"] for block in record["blocks"]])
    return found


def one_command(
    model: str,
    tokens: str,
    folder: Path,
    env: dict[str, str],
    points: list[tuple[float, float]] = POINTS,
) -> list[list[float]]:
    """The points by one `icp-jax sweep`; the errors of their blocks, in the order of the points."""
    file, out = folder / "points.py", folder / "swept"
    text = SWEEP.format(
        model=model, tokens=tokens, points=[(float(s), float(a)) for s, a in points],
        samples=SAMPLES, window=WINDOW, epochs=EPOCHS, rate=RATE, gamma=GAMMA,
    )  # fmt: skip
    file.write_text(text)
    asked = ["sweep", str(file), "--out", str(out), "--quiet"]
    run([sys.executable, "-m", "icp_jax.cli", *asked], env)
    rows = [json.loads(line) for line in (out / "points.jsonl").read_text().splitlines()]
    if any(row["state"] != "done" for row in rows) or len(rows) != len(points):
        raise RuntimeError(f"{len(rows)} points of {len(points)}: {rows[-1]}")
    found = {tuple(row["settings"].values()): row["errors"] for row in rows}
    return [found[float(s), float(a)] for s, a in points]


def growth(model: str, tokens: str) -> dict[int, float]:
    """Seconds of `icp-jax sweep` by the number of points, each with an empty compile cache."""
    found = {}
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as made:
            env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{made}/cache"}
            started = time.perf_counter()
            one_command(model, tokens, Path(made), env, MANY[:count])
            found[count] = time.perf_counter() - started
        print(f"{count:3} points {found[count]:7.1f} s", flush=True)
    return found


def run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def measure(side: str, model: str, tokens: str) -> dict[str, Any]:
    """One side: seconds, peak MiB and errors."""
    with tempfile.TemporaryDirectory() as made:
        env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{made}/cache"}
        started = time.perf_counter()
        if side == "commands":
            errors = commands(model, tokens, Path(made), env)
        elif side == "sweep":
            errors = one_command(model, tokens, Path(made), env)
        else:
            errors = json.loads(run([sys.executable, __file__, "--side", side, model, tokens], env))
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "errors": errors}


def peak(side: str, model: str, tokens: str) -> dict[str, Any]:
    """`measure` in a process of its own, whose children's peak is this side's alone."""
    asked = [sys.executable, __file__, "--measure", side, model, tokens]
    return json.loads(run(asked, dict(os.environ)).splitlines()[-1])


def inputs(args: argparse.Namespace, folder: Path) -> tuple[str, str, str]:
    """(name, model folder, a file of calibration windows)."""
    import icp_jax
    from icp_jax.demo import BUNDLED

    tokens = folder / "tokens.npy"
    if args.stories:
        from bench_stories import tokens as encoded

        stream, _ = encoded(args.text, args.stories / "tok512.bin")
        np.save(tokens, stream[: SAMPLES * WINDOW].reshape(SAMPLES, WINDOW))
        return "stories260K", str(args.stories), str(tokens)
    model = icp_jax.load(BUNDLED)
    text = BUNDLED / "calibration.txt"
    drawn = icp_jax.calibrate(model, text, samples=SAMPLES, seq_len=WINDOW, overlap=True)
    np.save(tokens, drawn)
    return BUNDLED.name, str(BUNDLED), str(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return child(*args.side)
    if args.measure:
        found = measure(*args.measure)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(json.dumps({**found, "mib": usage.ru_maxrss / 1024}))
        return None
    import common

    with tempfile.TemporaryDirectory() as made:
        name, model, tokens = inputs(args, Path(made))
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(args.rounds):
            for side in SIDES:
                found[side].append(peak(side, model, tokens))
                print(f"{side:10} {found[side][-1]['seconds']:7.1f} s", flush=True)
        grown = growth(model, tokens)
    rows = [_row(side, found) for side in SIDES]
    for row in rows:
        print("{side:10} {seconds:7.1f} s  {share:5.2f}  {mib:6.0f} MiB  {off:.1e}".format(**row))
    record = {**common.provenance(), "model": name, "points": POINTS, "rows": rows}
    record |= {"settings": "sparsity × alpha", "growth": grown}
    record["command"] = "python benchmarks/bench_sweep.py" + (
        " --stories FOLDER --text FILE" if args.stories else ""
    )
    print(common.write(f"bench_sweep_{name}.json", record))
    return None


def _row(side: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    ours, base = found[side], found["commands"]
    exact = np.array(found["calls"][0]["errors"])
    return {
        "side": side,
        "seconds": statistics.median(r["seconds"] for r in ours),
        "share": statistics.median(
            r["seconds"] / b["seconds"] for r, b in zip(ours, base, strict=True)
        ),
        "mib": max(r["mib"] for r in ours),
        "off": float(np.max(np.abs(np.array(ours[0]["errors"]) / exact - 1))),
    }


if __name__ == "__main__":
    main()
