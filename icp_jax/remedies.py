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
    """Raises InputError, with the list, where more than a tenth of the layers needed a remedy.

    A remedy is a Hessian damped further, for all layers that read its tap, or a compensation that
    diverged, for all layers of its block; a single one is never too many, however small the model.
    taps: layer -> tap; blocks: of the whole model.
    """
    damped = {(r.block, taps[x.name]) for r in reports for x in r.layers if x.rungs}
    diverged = [r for r in reports if r.compensation and r.compensation.restored in DIVERGED]
    layers = {(block, name) for block, tap in damped for name in taps if taps[name] == tap}
    layers |= {(report.block, name) for report in diverged for name in taps}
    if len(damped) + len(diverged) > 1 and 10 * len(layers) > blocks * len(taps):
        lines = [line for report in reports for line in _damped(report)]
        lines += [line for report in diverged for line in _restored(report)]
        advice = ["more calibration samples or a larger --prune.damping may help"] * bool(damped)
        advice += ["lower --compensate.lr, or set --compensate.epochs 0"] * bool(diverged)
        raise InputError(
            f"more than a tenth of the layers needed a remedy: {'; '.join(lines + advice)}"
        )
