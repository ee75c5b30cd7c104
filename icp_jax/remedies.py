"""What a run had to do about numbers that failed: said in words, and when it is too much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from icp_jax.compensation import DIVERGED
from icp_jax.errors import InputError

if TYPE_CHECKING:
    from icp_jax.pipeline import BlockReport


def remedies(report: BlockReport) -> list[str]:
    """A line for every remedy that a block needed."""
    return [*_damped(report), *_restored(report)]


def _damped(report: BlockReport) -> list[str]:
    climbed: dict[tuple[float, ...], list[str]] = {}
    for layer in report.layers:
        climbed.setdefault(layer.rungs, []).append(layer.name)
    return [
        f"block {report.block}: the Hessian of {', '.join(names)} was not positive definite; "
        f"damping raised to {rungs[-1]:g}"
        for rungs, names in climbed.items()
        if rungs
    ]


def _restored(report: BlockReport) -> list[str]:
    tuned = report.compensation
    if tuned is None or not tuned.restored:
        return []
    return [
        f"block {report.block}: compensation undone, {tuned.restored}; "
        f"its loss went from {tuned.before:.3g} to {tuned.after:.3g}"
    ]


def check_share(reports: Sequence[BlockReport], taps: dict[str, str], blocks: int) -> None:
    """Raises InputError, with the list, where more than a tenth needed a remedy.

    Counted are Hessians (layers that read one tap share one) and, apart from them, blocks whose
    compensation diverged; one of a kind is never too many, however small the model. taps: layer
    -> tap; blocks: of the whole model.
    """
    damped = {(r.block, taps[x.name]) for r in reports for x in r.layers if x.rungs}
    if too_many(len(damped), blocks * len(set(taps.values()))):
        lines = "; ".join(line for report in reports for line in _damped(report))
        advice = "more calibration samples or a larger --prune.damping may help"
        raise InputError(f"more than a tenth of the Hessians: {lines}: {advice}")
    diverged = [r for r in reports if r.compensation and r.compensation.restored in DIVERGED]
    if too_many(len(diverged), blocks - 1):
        lines = "; ".join(line for report in diverged for line in _restored(report))
        advice = "lower --compensate.lr, or set --compensate.epochs 0"
        raise InputError(f"more than a tenth of the compensations: {lines}: {advice}")


def too_many(count: int, total: int) -> bool:
    """More than a tenth, and more than one."""
    return count > 1 and 10 * count > total
