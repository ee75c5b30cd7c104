"""Run a sweep: from a sweep file to a folder with a record of every point."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from converters.files import REPORT
from icp_jax.config import RunConfig
from icp_jax.data.hub import resolve
from icp_jax.errors import InputError
from icp_jax.report import folders, write
from icp_jax.runs.export import check_free
from icp_jax.runs.resume import log
from icp_jax.runs.run import prune_folder
from icp_jax.streaming.source import FolderSource
from icp_jax.sweeps import settings
from icp_jax.sweeps.folder import SweepFolder
from icp_jax.sweeps.running import ENGINES, EngineName, Row, Running, Watch
from icp_jax.sweeps.settings import Sweep
from icp_jax.sweeps.shared import Shared


class Swept(NamedTuple):
    """The result of a sweep."""

    out: Path
    rows: list[Row]  # the records of all points, as in points.jsonl
    best: Row | None  # of the lowest perplexity
    config: RunConfig | None  # the settings of the best, without `out`
    exported: Path | None = None


def sweep(
    sweep: Sweep | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    engine: EngineName = "auto",
    export_best: str | Path = "",
    watch: Watch | None = None,
    **changes: Any,
) -> Swept:
    """Prune and evaluate a model with many settings.

    sweep: a Sweep, a file with `get_sweep()`, or the name of a bundled sweep. out: folder for
    `points.jsonl`, with one line a point, and `sweep.json`. resume: skip the points recorded there;
    for a search, also join the processes that work on it. engine: compiled keeps the whole model
    in memory, streamed one block; auto takes compiled if it fits. export_best: write the best
    point as a checkpoint into this folder. changes: replace fields of the Sweep, such as
    `model="facebook/opt-125m"` or `trials=10`. Raises InputError.
    """
    watch, given = watch or Watch(), _given(sweep, changes)
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if export_best:
        check_free(export_best)
    folder = SweepFolder(out, resume)
    assert isinstance(given.base, RunConfig)
    with closing(FolderSource(resolve(given.base.model))) as source:
        listed = [] if given.space else settings.listed(given, source.family)
        points = [(point, settings.at(given.base, point)) for point in listed]
        running = Running(given, folder, Shared(source, given, watch.tick), engine, watch)
        try:
            if given.space:
                running.search()
            else:
                running.points(points)
        except BaseException as error:
            if folder.began():
                error.add_note(f"after {len(folder.rows())} points; continue with --resume")
            raise
        finally:
            folder.close()
    return _finished(given, folder, export_best, watch)


def _given(sweep: Sweep | str | Path, changes: dict[str, Any]) -> Sweep:
    given = sweep if isinstance(sweep, Sweep) else settings.load(str(sweep))
    known = {field.name for field in dataclasses.fields(Sweep)}
    for name in changes:
        if name not in known:
            raise InputError(f"{name!r} is not a field of a Sweep: use {', '.join(sorted(known))}")
    given = settings.check(dataclasses.replace(given, **changes))
    if given.space and given.sampler != "grid" and given.trials is None and given.budget is None:
        raise InputError("a search needs an end: set trials or budget")
    return given


def best_of(rows: list[Row]) -> Row | None:
    """The record of the lowest perplexity; None if no point is done."""
    done = [row for row in rows if row["state"] == "done"]
    return min(done, key=lambda row: row["perplexity"], default=None)


def config_of(given: Sweep, row: Row) -> RunConfig:
    """The settings of a recorded point, without `out`."""
    assert isinstance(given.base, RunConfig)
    return settings.at(given.base, row["settings"])


def _finished(given: Sweep, folder: SweepFolder, export: str | Path, watch: Watch) -> Swept:
    rows = folder.rows()
    best = best_of(rows)
    config = None if best is None else config_of(given, best)
    folder.finish({"best": None if best is None else best["key"]})
    page = folder.path / REPORT
    write.attempt(page, lambda: write.html([folders.read(folder.path)]), log.warning, folder.path)
    exported = None
    if export:
        if config is None:
            raise InputError(f"no point is done, so {export} was not written: see {folder.path}")
        whole = dataclasses.replace(config, out=str(export))
        exported = prune_folder(whole, watch.tick, keep=False).out
    return Swept(folder.path, rows, best, config, exported)
