"""A sweep under way: the choice of the engine, the points that are left, and their records."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import jax

from icp_jax.checks import flat
from icp_jax.config import RunConfig
from icp_jax.errors import InputError
from icp_jax.phases import Progress
from icp_jax.runs.records import canonical, sha256, versions
from icp_jax.streaming import storage
from icp_jax.sweeps import settings
from icp_jax.sweeps.compiled import Compiled, may_fit, pays
from icp_jax.sweeps.folder import SweepFolder
from icp_jax.sweeps.outcome import Outcome, block_facts
from icp_jax.sweeps.settings import Point, Sweep
from icp_jax.sweeps.shared import Prepared, Shared
from icp_jax.sweeps.streamed import Streamed
from icp_jax.sweeps.study import Study

EngineName = Literal["auto", "compiled", "streamed"]
ENGINES = ("auto", "compiled", "streamed")
FORM = 1  # of the records
Row = dict[str, Any]


class Watch(NamedTuple):
    """Callbacks for the progress of a sweep."""

    tick: Progress = lambda block, phase, done, total, loss: None
    # called with the record of a point, how many are done, and how many there are, if known
    point: Callable[[Row, int, int | None], None] = lambda row, done, total: None


class Running:
    """A sweep under way."""

    def __init__(
        self, given: Sweep, folder: SweepFolder, shared: Shared, asked: EngineName, watch: Watch
    ):
        self.given, self.folder, self.shared, self.watch = given, folder, shared, watch
        self.asked = asked
        self.engine: Compiled | Streamed | None = None
        self.until = None if given.budget is None else time.monotonic() + 60 * given.budget
        self.done, self.total = 0, given.trials
        self.inputs = shared.inputs()
        self.digest = sha256(canonical(self.inputs))

    def points(self, listed: Sequence[tuple[Point, RunConfig]]) -> None:
        """Run the points of a list that are not recorded yet."""
        every = {p.key: p for p in (self.shared.prepare(*one) for one in listed)}
        self._begin({"points": [dict(point) for point, _ in listed]}, alone=True)
        known = {row["key"] for row in self.folder.rows()} & set(every)
        left = [p for key, p in every.items() if key not in known]
        if self.given.trials is not None:
            left = left[: max(0, self.given.trials - len(known))]
        self.done, self.total = len(known), len(known) + len(left)
        for prepared in left:
            if prepared.made is None:
                self._infeasible(prepared)
        ready = [prepared for prepared in left if prepared.made is not None]
        if not ready or self._late():
            return
        self.engine = self._chosen(ready)
        for outcome in self.engine.run(ready):
            self._record(self._row(outcome))
            if self._late():
                break

    def search(self) -> None:
        """Run points that the sampler proposes, until there are enough or the time is over."""
        ranges = {name: repr(span) for name, span in self.given.space.items()}
        self._begin({"space": ranges, "sampler": self.given.sampler}, alone=False)
        self.done = len(self.folder.rows())
        study = Study(self.given, self.folder.path)
        try:
            for trial in study.trials():
                self._try(study, trial)
                if self._late():
                    break
        finally:
            study.close()

    def _try(self, study: Study, trial: Any) -> None:
        """Run one proposal of the sampler, unless it is infeasible or recorded already."""
        point = study.point(trial)
        prepared = self.shared.prepare(point, settings.at(self._base(), point))
        if prepared.made is None:
            return study.refuse(trial, prepared.why)
        known = {row["key"]: row for row in self.folder.rows()}
        if prepared.key in known:  # proposed twice, or recorded by a process that was then killed
            return study.tell(trial, known[prepared.key].get("perplexity"))
        self.engine = self.engine or self._chosen([prepared])
        for outcome in self.engine.run([prepared], study.watch(trial)):
            row = {**self._row(outcome), "trial": trial.number}
            self._record(row)
            study.tell(trial, row.get("perplexity"))
        return None

    def _base(self) -> RunConfig:
        assert isinstance(self.given.base, RunConfig)
        return self.given.base

    def _late(self) -> bool:
        return self.until is not None and time.monotonic() >= self.until

    def _begin(self, what: Mapping[str, Any], *, alone: bool) -> None:
        """Write sweep.json."""
        facts = {
            "form": FORM,
            "model": self._base().model,
            "base": flat(self._base()),
            "data": self.given.data,
            "objective": self.given.objective,
            **what,
            "inputs": self.inputs,
        }
        self.folder.begin(facts, alone=alone)

    def _chosen(self, points: Sequence[Prepared]) -> Compiled | Streamed:
        """The engine: compiled where that is faster, and a whole point fits into the memory."""
        search = bool(self.given.space)
        chosen: Compiled | Streamed = Streamed(self.shared, self.folder.path, search)
        auto = self.asked == "auto" and pays(points, self.given) and may_fit(self.shared)
        if auto or self.asked == "compiled":
            compiled = Compiled(self.shared)
            if not auto or compiled.need(points[0]) < storage.device_free():
                chosen = compiled
        return chosen

    def _row(self, outcome: Outcome) -> Row:
        """The record of a point, evaluated if it was pruned."""
        started, state, why, found = time.perf_counter(), outcome.state, outcome.why, {}
        if outcome.pruned is not None:
            try:
                measured = self.shared.evaluate(outcome.pruned, outcome.prepared.config.dtype)
                found = measured._asdict()
            except InputError as error:  # the loss is not finite
                state, why = "failed", str(error)
        seconds = {"prune": outcome.seconds, "evaluate": time.perf_counter() - started}
        took = {"seconds": sum(seconds.values()), "seconds_of": seconds}
        row = self._known(outcome.prepared, state, why)
        return {**row, **found, **block_facts(outcome.reports), **took}

    def _known(self, prepared: Prepared, state: str, why: str) -> Row:
        return {
            "key": prepared.key,
            "state": state,
            **({"why": why} if why else {}),
            "settings": dict(prepared.point),
            "config": {**flat(prepared.config), "out": ""},
            "engine": None if self.engine is None else self.engine.name,
            "device": jax.devices()[0].device_kind,
            "versions": versions(),
            "inputs": self.digest,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _infeasible(self, prepared: Prepared) -> None:
        self._record(self._known(prepared, "infeasible", prepared.why))

    def _record(self, row: Row) -> None:
        """Write the record of a point, if the source is still the one that was read."""
        self.shared.weights.check()
        self.folder.add(row)
        self.done += 1
        self.watch.point(row, self.done, self.total)
