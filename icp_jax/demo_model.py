"""The demo on a model of the user's: sparsegpt and icp on bundled text, in minutes.

It is calibrated on little, so that it is quick: its table compares the methods, and no more.
"""

from __future__ import annotations

import gc
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from icp_jax import data
from icp_jax.api import evaluate
from icp_jax.backend import heap
from icp_jax.config import CalibrationConfig, PruneConfig, RunConfig, check
from icp_jax.data.hub import resolve
from icp_jax.demo import BUNDLED, FIGURE, Watch, finished, folder, unwatched
from icp_jax.errors import InputError
from icp_jax.evaluation.continued import WRITTEN
from icp_jax.evaluation.continued import continued as written
from icp_jax.evaluation.perplexity import Perplexity
from icp_jax.phases import Progress
from icp_jax.report.figures import error_growth
from icp_jax.runs.records import reset_peak
from icp_jax.runs.run import prune_folder
from icp_jax.streaming.source import FolderSource

METHODS = ("sparsegpt", "icp")
SAMPLES, LENGTH = 16, 512  # windows of calibration, and of evaluation; tokens of each
TEXT = "text"  # the phase in which a model writes
PROMPT = "Once upon a time, there was a little girl who"


def demo_model(
    model: str, out: str | Path, sparsity: float, watch: Watch = unwatched
) -> dict[str, Any]:
    """Prune a language model by each method and evaluate it on text that was not used.

    model: as in `icp_jax.load`. out, watch: as in `icp_jax.demo.demo`. Returns the results of the
    table. Raises InputError.
    """
    check(RunConfig(prune=PruneConfig(sparsity=sparsity)))
    source = resolve(model)
    with watch("dense: ") as watcher:
        windows = heldout(source, watcher.tick)
    with folder(out, source.name) as place:
        return _compare(source, windows, place, sparsity, watch)


def heldout(model: Path, progress: Progress) -> np.ndarray:
    """The first windows `[SAMPLES, T]` of the bundled held-out text, in the model's tokens."""
    with closing(FolderSource(model)) as source:
        encode = data.Encoder(model, data.vocabulary(source.config), progress)
        length = min(LENGTH, source.family.context)
        text = str(BUNDLED / "heldout.txt")
        return data.evaluation_windows(text, length, source.family.context, encode)[:SAMPLES]


def config_of(model: Path, method: str, sparsity: float, length: int, out: Path) -> RunConfig:
    """The settings of one method: the defaults, on little text."""
    text = str(BUNDLED / "calibration.txt")
    return RunConfig(
        model=str(model),
        out=str(out),
        prune=PruneConfig(method=method, sparsity=sparsity),  # type: ignore[arg-type]
        calibration=CalibrationConfig(text, samples=SAMPLES, seq_len=length),
    )


def _compare(
    model: Path, windows: np.ndarray, out: Path, sparsity: float, watch: Watch
) -> dict[str, Any]:
    with watch("dense: ") as watcher:
        dense = _perplexity(model, windows, watcher.tick)
        texts = {"dense": continued(model, PROMPT, watcher.tick)}
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        run = config_of(model, method, sparsity, windows.shape[1], out / method)
        forget()
        with watch(f"{method}: ") as (tick, expect):
            done = prune_folder(run, tick, keep=False, expect=expect)
        with watch(f"{method}: ") as (tick, _):
            found = _perplexity(done.out, windows, tick)
            texts[method] = continued(Path(done.out), PROMPT, tick)
        rows.append(
            {
                "method": method,
                "sparsity": done.sparsity,
                "perplexity": found.perplexity,
                "seconds": round(done.seconds, 3),
                "peak_host_mib": done.peak_host_mib,
                "errors": [block.error for block in done.blocks],
            }
        )
    title = f"{model.name} at {sparsity:.0%} sparsity"
    error_growth({row["method"]: row["errors"] for row in rows}, out / FIGURE, title)
    result = {
        "model": model.name,
        "calibration": {"samples": SAMPLES, "seq_len": int(windows.shape[1])},
        "dense": dense._asdict(),
        "methods": rows,
        "prompt": PROMPT,
        "texts": texts,
    }
    return finished(out, result)


def continued(model: Path, prompt: str, progress: Progress) -> str:
    """What a model writes after a prompt, its likeliest tokens."""
    progress(-1, TEXT, 0, WRITTEN, None)
    text = written(model, prompt)
    progress(-1, TEXT, WRITTEN, WRITTEN, None)
    return text


def forget() -> None:
    """Free what earlier steps left, and count the peak memory from here."""
    gc.collect()
    heap.give_back()
    reset_peak()


def _perplexity(model: str | Path, windows: np.ndarray, progress: Progress) -> Perplexity:
    found = evaluate(model, windows, progress=progress)
    if not isinstance(found, Perplexity):
        raise InputError(f"{model} does not read text: give a language model")
    return found
