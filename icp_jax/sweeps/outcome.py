"""The outcome of one point, as both engines give it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from icp_jax.core.outcomes import BlockReport, remedies
from icp_jax.streaming.hidden import WholeSource
from icp_jax.sweeps.shared import Prepared


class Stopped(Exception):
    """Raised by a watcher of blocks: the point is not worth its remaining blocks."""


Blocks = Callable[[BlockReport], None]  # called after each block; may raise Stopped


class Outcome(NamedTuple):
    """A point that was run: pruned, or given up with a reason."""

    prepared: Prepared
    seconds: float
    reports: list[BlockReport]
    pruned: WholeSource | None = None  # None if the point failed or was stopped
    state: str = "done"  # done, failed or stopped
    why: str = ""


def block_facts(reports: list[BlockReport]) -> dict[str, Any]:
    """What a point's record says of its blocks."""
    zeros = sum(layer.zeros for block in reports for layer in block.layers)
    size = sum(layer.size for block in reports for layer in block.layers)
    tuned = [block.compensation for block in reports]
    return {
        "sparsity": zeros / size if size else None,
        "errors": [block.error for block in reports],
        "error_medians": [block.error_median for block in reports],
        "error_p95s": [block.error_p95 for block in reports],
        "loss_before": [None if x is None else x.before for x in tuned],
        "loss_after": [None if x is None else x.after for x in tuned],
        "remedies": [line for block in reports for line in remedies(block)],
    }
