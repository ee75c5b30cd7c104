"""What the points of a sweep share: the model, its digests, calibration and evaluation data."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np

from icp_jax import data
from icp_jax.checks import flat, put
from icp_jax.config import CalibrationConfig, RunConfig
from icp_jax.data import inputs
from icp_jax.errors import Infeasible, InputError
from icp_jax.evaluation.perplexity import Perplexity, perplexity
from icp_jax.phases import Progress
from icp_jax.planning.plan import settle
from icp_jax.planning.workload import resolved
from icp_jax.runs.fingerprint import FREE, Weights, fingerprint
from icp_jax.runs.job import job, placed
from icp_jax.runs.records import canonical, sha256
from icp_jax.streaming.hidden import WholeSource
from icp_jax.streaming.job import Job
from icp_jax.streaming.source import FolderSource
from icp_jax.sweeps.settings import Point, Sweep

KEY = 16  # characters of a point's key


class Prepared(NamedTuple):
    """A point with all that its run needs."""

    key: str  # a digest of all that the result depends on, the model and versions left out
    point: Point
    config: RunConfig  # resolved
    made: Job | None  # None: its allocation of zeros is infeasible
    tokens: np.ndarray
    why: str = ""  # it is infeasible

    @property
    def job(self) -> Job:
        """The job of a feasible point."""
        assert self.made is not None
        return self.made


class Shared:
    """The open model and its data, loaded once for all points. Raises InputError."""

    def __init__(self, source: FolderSource, sweep: Sweep, tick: Progress):
        if source.family.kind == "vision":
            raise InputError("a sweep measures perplexity, so it needs a language model, not SAM")
        self.source, self.tick = source, tick
        vocabulary = data.vocabulary(source.config)
        encode = data.Encoder(source.folder, vocabulary, tick)
        context = source.family.context
        windows = data.evaluation_windows(sweep.data, sweep.seq_len, context, encode)
        self.windows = windows[: sweep.limit]
        self._tokens: dict[CalibrationConfig, np.ndarray] = {}
        self._digests: dict[CalibrationConfig, str] = {}
        source.check_finite()
        self.weights = Weights(source)

    def inputs(self) -> dict[str, Any]:
        """All that every result depends on beside its own settings: a fingerprint."""
        samples = inputs.record(self.source, self.windows)
        named = {name.replace("calibration", "evaluation"): v for name, v in samples.items()}
        return fingerprint({}, self.weights, named)

    def tokens(self, config: CalibrationConfig) -> np.ndarray:
        """The calibration tokens of these settings, `[N, T]`; loaded once."""
        if config not in self._tokens:
            found = inputs.calibration(config, self.source, self.tick)
            self._tokens[config] = found
            self._digests[config] = hashlib.sha256(np.ascontiguousarray(found).data).hexdigest()
        return self._tokens[config]

    def prepare(self, point: Point, config: RunConfig) -> Prepared:
        """Settle a point. Raises InputError."""
        full = resolved(config, self.source)
        tokens = self.tokens(config.calibration)
        counted = put(full, "calibration.samples", len(tokens))
        settled, _ = settle(self.source, counted)
        free = (*FREE, "memory.batch_tokens", "memory.remat")  # depend on the free memory
        settings = {name: v for name, v in flat(settled).items() if name not in free}
        settings["calibration"] = self._digests[config.calibration]
        key = sha256(canonical(settings))[:KEY]
        try:
            made = placed(job(self.source, config), settled.memory)
        except Infeasible as error:
            return Prepared(key, point, settled, None, tokens, str(error))
        return Prepared(key, point, settled, made, tokens)

    def evaluate(self, source: WholeSource, dtype: str) -> Perplexity:
        """Perplexity on the evaluation windows. Raises InputError if it is not finite."""
        return perplexity(source, self.windows, dtype=dtype, progress=self.tick)
