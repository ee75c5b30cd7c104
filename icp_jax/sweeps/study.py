"""A search with optuna: several processes ask one journal for points and tell it the results."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import filelock

from icp_jax.core.outcomes import BlockReport
from icp_jax.errors import InputError
from icp_jax.sweeps.outcome import Blocks, Stopped
from icp_jax.sweeps.settings import Point, Sweep
from icp_jax.sweeps.space import Choice, Integers, Range

NAME = "icp-jax"
STARTUP, WARMUP = 4, 2  # finished points, and a point's first blocks, before it may be stopped
IDLE = 200  # refused points in a row, after which the space is taken for infeasible
WORKER, WHY = "worker", "why"  # attributes of a trial


class Study:
    """One process's part in a search. Raises InputError without optuna.

    A point that a killed process was running is put back into the queue by the next process.
    """

    def __init__(self, sweep: Sweep, folder: Path):
        self.sweep, self.optuna = sweep, _optuna()
        optuna = self.optuna
        for name, span in sweep.space.items():
            if sweep.sampler == "grid" and not isinstance(span, Choice):
                raise InputError(f"{name}: the grid sampler needs choice(...) ranges, got {span}")
            if sweep.sampler == "cmaes" and isinstance(span, Choice):
                raise InputError(f"{name}: the cmaes sampler needs numbers, got {span}")
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(folder / "study.log"))
        )
        self.study = optuna.create_study(
            storage=storage, study_name=NAME, direction="minimize", load_if_exists=True
        )
        _sampler(optuna, sweep, 0)  # raises InputError if it cannot be made
        self.spans = {name: _distribution(optuna, span) for name, span in sweep.space.items()}
        self.folder, self.id = folder, f"worker-{os.getpid()}-{time.time_ns()}"
        self.lock = filelock.FileLock(folder / f"{self.id}.lock")
        with self._asking():
            self.lock.acquire()
            self._requeue()

    def close(self) -> None:
        self.lock.release()
        with contextlib.suppress(OSError):
            Path(self.lock.lock_file).unlink()

    def _asking(self) -> filelock.BaseFileLock:
        return filelock.FileLock(self.folder / "ask.lock")

    def _requeue(self) -> None:
        """Put the points of processes that ended back into the queue, and remove their locks.

        A trial without a worker is that of a process killed in `_ask`, since no other is asking.
        """
        locks = self.folder.glob("worker-*.lock")
        alive = {self.id, *[p.stem for p in locks if p.stem != self.id and _alive(p)]}
        running = self.optuna.trial.TrialState.RUNNING
        for trial in self.study.get_trials(deepcopy=False, states=(running,)):
            if trial.user_attrs.get(WORKER) in alive:
                continue
            with contextlib.suppress(Exception):  # its process ended just now, with a result
                self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
                if set(trial.params) == set(self.spans):  # else it was not proposed yet
                    self.study.enqueue_trial(trial.params)

    def trials(self) -> Iterator[Any]:
        """Trials to run or refuse, until as many points as asked for are under way or done."""
        refused = 0
        while (trial := self._ask()) is not None:
            yield trial
            refused = refused + 1 if WHY in trial.user_attrs else 0
            if refused > IDLE:
                raise InputError(
                    f"{IDLE} points in a row are infeasible, the last: {trial.user_attrs[WHY]}; "
                    "narrow the space"
                )

    def _ask(self) -> Any:
        """The next trial; None if there are enough. Its seed follows from its number."""
        with self._asking():
            if self._enough():
                return None
            number = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = _sampler(self.optuna, self.sweep, number)
            trial = self.study.ask(self.spans)
            trial.set_user_attr(WORKER, self.id)
        self.study.sampler = self.optuna.samplers.RandomSampler()  # the grid's cannot be told
        return trial

    def _enough(self) -> bool:
        states = self.optuna.trial.TrialState
        trials = self.study.get_trials(deepcopy=False)
        counted = [t for t in trials if t.state not in (states.FAIL, states.WAITING)]
        tried = [t for t in counted if WHY not in t.user_attrs]
        if self.sweep.sampler == "grid":
            seen = {tuple(sorted((k, repr(v)) for k, v in t.params.items())) for t in counted}
            spans = self.sweep.space.values()
            if len(seen) >= math.prod(len(s.values) for s in spans if isinstance(s, Choice)):
                return True
        return self.sweep.trials is not None and len(tried) >= self.sweep.trials

    def watch(self, trial: Any) -> Blocks:
        """A watcher that stops a point whose stream error is above the median of finished points.

        optuna's own pruners take the best of a point's values, but an error grows with the blocks.
        """
        complete = (self.optuna.trial.TrialState.COMPLETE,)

        def block(report: BlockReport) -> None:
            at, error = report.block, report.error
            trial.report(error, at)
            done = self.study.get_trials(deepcopy=False, states=complete)
            others = [t.intermediate_values[at] for t in done if at in t.intermediate_values]
            if at >= WARMUP and len(others) >= STARTUP and error > median(others):
                raise Stopped(f"error {error:.4g} after block {at}, median {median(others):.4g}")

        return block

    def tell(self, trial: Any, value: float | None) -> None:
        """The result of a trial. None: stopped or failed, which samplers take for the worst."""
        if value is None:
            self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(trial, value)

    def refuse(self, trial: Any, why: str) -> None:
        """Tell that a trial is infeasible; it is not counted."""
        trial.set_user_attr(WHY, why)
        self.tell(trial, None)

    def point(self, trial: Any) -> Point:
        return dict(trial.params)


def _alive(path: Path) -> bool:
    """Whether a process holds this lock; if none does, it is removed."""
    lock = filelock.FileLock(path, timeout=0)
    try:
        with lock:
            path.unlink(missing_ok=True)
            return False
    except filelock.Timeout:
        return True


def _optuna() -> Any:
    try:
        import optuna
        import optuna.storages.journal
    except ImportError:
        raise InputError("a search needs optuna: pip install 'icp-jax[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _distribution(optuna: Any, span: Range) -> Any:
    if isinstance(span, Choice):
        return optuna.distributions.CategoricalDistribution(span.values)
    if isinstance(span, Integers):
        return optuna.distributions.IntDistribution(span.low, span.high)
    return optuna.distributions.FloatDistribution(span.low, span.high, log=span.log)


def _sampler(optuna: Any, sweep: Sweep, number: int) -> Any:
    """The sampler of a trial, by name. Samplers keep their state in the journal."""
    samplers, seed = optuna.samplers, sweep.seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are marked as experimental
        if sweep.sampler == "grid":
            space = {k: list(v.values) for k, v in sweep.space.items() if isinstance(v, Choice)}
            return samplers.GridSampler(space, seed=seed)
        if sweep.sampler == "qmc":  # one sequence for all trials
            return samplers.QMCSampler(seed=seed, warn_independent_sampling=False)
        if sweep.sampler == "cmaes":
            try:
                return samplers.CmaEsSampler(seed=seed + number)
            except ImportError:
                raise InputError(
                    "the cmaes sampler needs another package: pip install 'icp-jax[search]'"
                ) from None
        made = samplers.TPESampler if sweep.sampler == "tpe" else samplers.RandomSampler
        return made(seed=seed + number)
