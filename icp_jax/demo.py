"""The demo: prune the bundled model with all four methods and compare held-out perplexity."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from converters.files import REPORT
from icp_jax.api import evaluate
from icp_jax.config import CalibrationConfig, CompensateConfig, PruneConfig, RunConfig, check
from icp_jax.errors import InputError
from icp_jax.evaluation.perplexity import Perplexity
from icp_jax.phases import Watcher
from icp_jax.report import folders, write
from icp_jax.report.figures import error_growth
from icp_jax.runs.export import write_json
from icp_jax.runs.resume import log
from icp_jax.runs.run import prune_folder

BUNDLED = Path(__file__).parent / "assets" / "opt-pydoc"
METHODS = ("magnitude", "wanda", "sparsegpt", "icp")
RESULT, FIGURE = "demo.json", "error-growth.png"


def demo_config(method: str, sparsity: float, out: Path, seed: int = 0) -> RunConfig:
    """The demo's settings for one method."""
    tuning = CompensateConfig(epochs=4, lr=1e-3, gamma=0.87)
    return RunConfig(
        model=str(BUNDLED),
        out=str(out),
        prune=PruneConfig(method=method, sparsity=sparsity),  # type: ignore[arg-type]
        compensate=tuning if method == "icp" else CompensateConfig(),
        calibration=CalibrationConfig(
            str(BUNDLED / "calibration.txt"), samples=128, seed=seed, overlap=True
        ),
    )


Watch = Callable[[str], contextlib.AbstractContextManager[Watcher]]


def unwatched(label: str) -> contextlib.AbstractContextManager[Watcher]:
    """A watcher that shows no progress."""
    return contextlib.nullcontext(Watcher())


def demo(out: str | Path, sparsity: float, watch: Watch = unwatched) -> dict[str, Any]:
    """Prune and evaluate the bundled model with every method.

    out: folder for the checkpoints and the figure; an earlier demo there is replaced. watch: maps a
    label to a context manager that yields the watcher of a step. Returns the results of the table.
    Raises InputError.
    """
    check(RunConfig(prune=PruneConfig(sparsity=sparsity)))
    with folder(out, BUNDLED.name) as place:
        return _compare(place, sparsity, watch)


@contextlib.contextmanager
def folder(out: str | Path, model: str) -> Iterator[Path]:
    """A new folder for a demo of this model, in place of an earlier demo. Raises InputError."""
    out = Path(out).expanduser()
    if out.exists():
        if not _is_demo(out):
            raise InputError(f"{out} exists and is not an earlier demo: choose another folder")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    write_json(out / RESULT, {"model": model, "methods": []})
    try:
        yield out
    except KeyboardInterrupt as error:
        error.add_note(f"in the demo; finished results are in {out}")
        raise


def _compare(out: Path, sparsity: float, watch: Watch) -> dict[str, Any]:
    heldout = BUNDLED / "heldout.txt"
    with watch("dense: ") as watcher:
        dense = evaluate(BUNDLED, heldout, progress=watcher.tick)
    rows, errors = [], {}
    for method in METHODS:
        with watch(f"{method}: ") as (tick, expect):
            run = demo_config(method, sparsity, out / method)
            done = prune_folder(run, tick, keep=False, expect=expect)
        with watch(f"{method}: ") as (tick, _):
            found = evaluate(done.out, heldout, progress=tick)
            assert isinstance(found, Perplexity)
        errors[method] = {
            "mean": [block.error for block in done.blocks],
            "median": [block.error_median for block in done.blocks],
            "95th percentile": [block.error_p95 for block in done.blocks],
        }
        rows.append(
            {
                "method": method,
                "sparsity": done.sparsity,
                "perplexity": found.perplexity,
                "seconds": round(done.seconds, 3),
            }
        )
    error_growth(errors, out / FIGURE, f"{BUNDLED.name} at {sparsity:.0%} sparsity")
    return finished(out, {"model": BUNDLED.name, "dense": dense._asdict(), "methods": rows})


def finished(out: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Write the result and the report of a demo. Returns the result with the paths of its files."""
    last = result["methods"][-1]["method"]
    names = {"checkpoint": last, "figure": FIGURE, "report": REPORT}
    result = result | {key: str(out / name) for key, name in names.items()}
    write_json(out / RESULT, result)
    write.attempt(out / REPORT, lambda: write.html([folders.read(out)]), log.warning, out)
    return result


def _is_demo(folder: Path) -> bool:
    try:
        record = json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and {"model", "methods"} <= record.keys()
