"""`core.distill` with one block on the device at a time.

The blocks that are not in use lie in host memory: their float32 params and Adam's two moments, 12
bytes a parameter. So do the params of the best epoch, in their stored dtype. The hidden states are
where `storage` puts them: of all windows the first and the dense model's last ones, and of the
windows of a step the input of every block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from icp_jax.backend import heap
from icp_jax.core.compensate import State
from icp_jax.core.distill import DistillMetrics
from icp_jax.core.passes import Params
from icp_jax.errors import InputError
from icp_jax.models.spec import Family
from icp_jax.streaming.distill_steps import Distillation, Pass, Tick
from icp_jax.streaming.hidden import WholeSource


class Reached(NamedTuple):
    """What a pass has after whole epochs; from here it can go on. Leaves are NumPy arrays."""

    metrics: DistillMetrics  # of these epochs
    states: list[State]  # of each block: its float32 params, and Adam's state
    best: list[Params] | None  # blocks of the best epoch in their stored dtypes; None: as given

    @property
    def epochs(self) -> int:
        return len(self.metrics.steps)


@dataclass(frozen=True)
class Hooks:
    """Callbacks of a driver, and what an earlier pass reached."""

    tick: Tick = lambda done, total, loss: None
    reached: Callable[[Reached], None] = lambda found: None  # called after every epoch
    begun: Reached | None = None


def distill(
    pruned: WholeSource,
    dense: WholeSource,
    tokens: Int[np.ndarray, "N T"],
    heldout: Int[np.ndarray, "M T"],
    given: Pass,
    hooks: Hooks | None = None,
) -> Reached:
    """Tune the blocks of a pruned model to predict what the dense one does, see `core.distill`.

    pruned, dense: models of one family. Ends early if a loss is not finite. The result is that of
    `core.distill`, and a resumed pass gives that of one that was not interrupted.
    """
    hooks, begun = hooks or Hooks(), hooks.begun if hooks else None
    states = begun.states if begun else None
    run = Distillation(pruned, dense, (tokens, heldout), given, hooks.tick, states)
    found = begun or Reached(_before(run), run.states, None)
    for epoch in range(found.epochs, len(given.steps.order)):
        lost = run.epoch(epoch)
        now = run.snapshot()
        measured = run.measure(now)
        steps, held, which = found.metrics
        best, better = found.best, measured < held[which]  # not if it is NaN
        if better:
            which, best = np.asarray(epoch + 1, np.int32), now.blocks
        metrics = DistillMetrics(
            np.concatenate([steps, lost[None]]), np.append(held, measured), which
        )
        found = Reached(metrics, run.states, best)
        hooks.reached(found)
        heap.give_back()
        if not np.isfinite(lost).all():
            break
    return found


def check_text(family: Family) -> None:
    """Raise InputError for a model that predicts no tokens."""
    if family.kind == "vision":
        raise InputError(
            "the global pass is for language models, and this one reads images: leave it out"
        )


def _before(run: Distillation) -> DistillMetrics:
    """The metrics before the first epoch."""
    none, held = np.zeros((0, run.count), np.float32), run.measure(run.pruned)
    return DistillMetrics(none, np.array([held]), np.asarray(0, np.int32))
