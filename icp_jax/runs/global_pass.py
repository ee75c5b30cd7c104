"""The global pass between folders: its windows, its room, its blocks and its record."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from icp_jax.backend import heap
from icp_jax.core.distill_steps import Steps, held_out, steps
from icp_jax.core.passes import Params
from icp_jax.errors import InputError
from icp_jax.models.spec import Family
from icp_jax.phases import GLOBAL, Progress
from icp_jax.planning.plan import gib
from icp_jax.runs.records import finite
from icp_jax.settings import GlobalConfig
from icp_jax.streaming import storage
from icp_jax.streaming.distill import Hooks, Reached, check_text, distill
from icp_jax.streaming.distill_steps import Pass
from icp_jax.streaming.hidden import WholeSource
from icp_jax.streaming.source import FolderSource

if TYPE_CHECKING:
    from icp_jax.runs.door import Ready
    from icp_jax.runs.resume import Work

STATE = 12  # bytes of a param in host memory: float32, and Adam's two moments


class Windows(NamedTuple):
    """The calibration windows of a global pass."""

    tuned: Int[np.ndarray, "N T"]
    heldout: Int[np.ndarray, "M T"]


def split(tokens: Int[np.ndarray, "n T"]) -> Windows:
    """Hold out the last tenth of the windows. Raises InputError if there is only one."""
    if len(tokens) < 2:
        raise InputError("one window leaves none to hold out: give at least two")
    count = held_out(len(tokens))
    return Windows(tokens[:-count], tokens[-count:])


def steps_of(given: GlobalConfig, seed: int, windows: int) -> Steps:
    """The steps of a pass whose settings are filled in."""
    assert given.lr is not None and given.batch is not None
    return steps(windows, epochs=given.epochs, lr=given.lr, batch=given.batch, seed=seed)


def host_bytes(source: FolderSource) -> int:
    """Bytes of host memory for the blocks: params and moments, and two copies as stored."""
    rules = [rule for rule in source.placed if rule.path[0] == "blocks"]
    each = [(int(np.prod(r.shape)), source.dtype(r.name).itemsize) for r in rules]
    return sum(size * (STATE + 2 * stored) for size, stored in each)


def check_room(source: FolderSource) -> None:
    """Raise InputError if the blocks do not fit into the free host memory."""
    needed, free = host_bytes(source), storage.host_free()
    if needed > free:
        raise InputError(
            f"the global pass keeps the blocks and Adam's moments in host memory: it needs "
            f"{gib(needed)} and {gib(free)} are free; free some, or leave the pass out"
        )


def held(family: Family, old: Params, new: Params, t: int) -> Params:
    """The new block. Raises RuntimeError if a zero of its linears is not where it was."""
    for spec in family.linears:
        before, after = (np.asarray(block[spec.name]["kernel"]) for block in (old, new))
        if np.any(after[before == 0]):
            raise RuntimeError(f"block {t}: {spec.name} lost zeros in the global pass")
    return new


def block_of(found: Reached, pruned: WholeSource, t: int) -> Params:
    """Block t of the best epoch, with its zeros checked."""
    old = pruned.block(t)
    return old if found.best is None else held(pruned.family, old, found.best[t], t)


def check(source: FolderSource, tokens: np.ndarray) -> None:
    """Raise InputError if a run with these windows cannot have a global pass."""
    check_text(source.family)
    split(tokens)
    if jax.process_count() > 1:
        raise InputError(
            "the global pass runs on one host: leave it out, and use icp-jax distill on the result"
        )
    check_room(source)


class Finished:
    """The model with the finished blocks of a work folder."""

    def __init__(self, source: FolderSource, work: Work):
        self.family, self.embed, self.head = source.family, source.embed, source.head
        self.block, self.forget = work.blocks.params, source.forget


def after_blocks(
    work: Work, source: FolderSource, run: Ready, progress: Progress
) -> Reached | None:
    """The global pass of a run, after its last block; None if it has none.

    Every epoch is kept in the work folder, and a resumed run goes on after the last one.
    """
    if not run.config.global_pass.epochs:
        return None
    heap.give_back()  # the streams of the blocks
    pruned, windows = Finished(source, work), split(run.tokens)
    made = steps_of(run.config.global_pass, run.config.seed or 0, len(windows.tuned))
    given = Pass(made, run.job.recipe.dtype, run.job.place, work.path)
    tick = partial(progress, source.family.n_blocks - 1, GLOBAL.name)
    hooks = Hooks(tick, work.epochs.write, work.epochs.read(pruned, work.say))
    return distill(pruned, source, *windows, given, hooks)


def record_of(found: Reached | None, given: GlobalConfig, tokens: np.ndarray) -> dict[str, Any]:
    """What the record of a run has of its pass, see `record`; empty without one."""
    if found is None:
        return {}
    return {"global_pass": record(found, given, split(tokens))}


def record(found: Reached, given: GlobalConfig, windows: Windows) -> dict[str, Any]:
    """The record of a pass as JSON values. kl: held out, as given and after each epoch."""
    metrics = jax.tree.map(np.asarray, found.metrics)
    losses = [row[np.isfinite(row)] for row in metrics.steps]
    made: dict[str, Any] = finite(
        {
            "epochs": given.epochs,
            "lr": given.lr,
            "batch": given.batch,
            "windows": len(windows.tuned),
            "heldout_windows": len(windows.heldout),
            "kl": metrics.heldout.tolist(),
            "training_kl": [float(row.mean()) if len(row) else None for row in losses],
            "best": int(metrics.best),
        }
    )
    return made
