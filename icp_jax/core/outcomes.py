"""Reports of a run: metrics as plain numbers, codes as messages, too many failures as an error.

These functions run on the host and serve both drivers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from icp_jax.core.damping import ladder
from icp_jax.core.fate import CompensationMetrics, Fate
from icp_jax.core.prune import LayerMetrics
from icp_jax.errors import InputError
from icp_jax.models.spec import Family

NOT_FINITE, ROSE, NO_GAIN = "loss not finite", "loss rose", "no gain"
WORDS = {Fate.NOT_FINITE: NOT_FINITE, Fate.ROSE: ROSE, Fate.NO_GAIN: NO_GAIN}
DIVERGED = (NOT_FINITE, ROSE)
MORE_DATA = "more calibration samples or a larger prune.damping may help"
LESS_LR = "lower compensate.lr (and retune.lr), or set compensate.epochs 0"


@dataclass(frozen=True)
class LayerReport:
    """One linear. error: ‖(W-Ŵ)ᵀx‖²/‖Wᵀx‖² on the inputs it was pruned with.

    zeros: in the kernel as stored. More than its budget if more inputs are dead, or if kept
    weights were zero before or are rounded to zero.
    rungs: dampings tried after the configured one, because the Hessian was not positive definite;
    the last was used.
    """

    name: str
    size: int
    zeros: int
    error: float
    rungs: tuple[float, ...] = ()


class Compensation(NamedTuple):
    """The loss (mean squared error) of a compensation or a re-tune."""

    before: float  # on the probe, before the first step
    after: float  # on the probe, after the last
    epochs: tuple[float, ...]  # mean training loss of each epoch
    restored: str = ""  # why it was undone: NOT_FINITE, ROSE or NO_GAIN


@dataclass(frozen=True)
class BlockReport:
    """One block. error: ‖sparse-dense‖²/‖dense‖² of the streams after it.

    error_median, error_p95: the median and 95th percentile of the same of every token by itself;
    NaN in records of earlier versions.
    """

    block: int
    layers: tuple[LayerReport, ...]
    error: float
    compensation: Compensation | None  # of this block, before it was pruned
    seconds: dict[str, float] = field(default_factory=dict)
    error_median: float = math.nan
    error_p95: float = math.nan
    retune: Compensation | None = None  # of this block, after it was pruned

    @property
    def tunings(self) -> dict[str, Compensation]:
        """What was tuned, by name."""
        both = {"compensation": self.compensation, "re-tune": self.retune}
        return {name: tuned for name, tuned in both.items() if tuned is not None}


def layer_reports(
    family: Family, sizes: Mapping[str, int], found: LayerMetrics, damping: float, where: str
) -> tuple[LayerReport, ...]:
    """Reports of one block's linears. where: as `block 3`.

    Raises InputError if an error is not finite.
    """
    rows = []
    for spec, zeros, error, rungs in zip(family.linears, *map(np.asarray, found), strict=True):
        tried = ladder(damping, int(rungs))
        if not np.isfinite(error):
            if tried and tried[-1] >= 1:
                why = "not positive definite with a damping of 1"
            else:
                why = "its error is not finite"
            raise InputError(f"layer {spec.name} of {where}: {why}; {MORE_DATA}")
        rows.append(LayerReport(spec.name, sizes[spec.name], int(zeros), float(error), tried))
    return tuple(rows)


def compensation_report(found: CompensationMetrics) -> Compensation | None:
    """The report of a compensation; None if the block was not tuned."""
    fate = Fate(int(found.fate))
    if fate == Fate.NONE:
        return None
    losses = np.asarray(found.epochs)
    wrong = np.flatnonzero(~np.isfinite(losses))
    epochs = losses[: wrong[0] + 1] if len(wrong) else losses  # later losses mean nothing
    return Compensation(
        float(found.before), float(found.after), tuple(map(float, epochs)), WORDS.get(fate, "")
    )


def reports(family: Family, params: Any, metrics: Any, damping: float) -> list[BlockReport]:
    """Reports of a run of `core.icp`. params: the model's. Raises InputError, see `check`."""
    metrics, found = jax.device_get(metrics), []
    for t in range(family.n_blocks):
        one, block = jax.tree.map(lambda x, t=t: x[t], metrics), params["blocks"][str(t)]
        if not np.isfinite(one.error):
            raise InputError(f"block {t} returns values that are not finite (NaN or infinity)")
        sizes = {spec.name: block[spec.name]["kernel"].size for spec in family.linears}
        layers = layer_reports(family, sizes, one.layers, damping, f"block {t}")
        tuned = compensation_report(one.compensation)
        spread = float(one.error_median), float(one.error_p95)
        again = compensation_report(one.retune)
        found.append(BlockReport(t, layers, float(one.error), tuned, {}, *spread, again))
    check(found, family)
    return found


def remedies(report: BlockReport) -> list[str]:
    """One line for each remedy that a block needed."""
    return [*_damped(report), *_restored(report)]


def _damped(report: BlockReport) -> list[str]:
    raised: dict[tuple[float, ...], list[str]] = {}
    for layer in report.layers:
        raised.setdefault(layer.rungs, []).append(layer.name)
    return [
        f"block {report.block}: the Hessian of {', '.join(names)} was not positive definite; "
        f"damping raised to {rungs[-1]:g}"
        for rungs, names in raised.items()
        if rungs
    ]


def _restored(report: BlockReport) -> list[str]:
    return [
        f"block {report.block}: {name} undone, {tuned.restored}; "
        f"its loss went from {tuned.before:.3g} to {tuned.after:.3g}"
        for name, tuned in report.tunings.items()
        if tuned.restored
    ]


def check(reports: Sequence[BlockReport], family: Family) -> None:
    """Raise InputError, with the list, if more than a tenth of the layers needed a remedy.

    Raised damping counts for all layers that read the tap, a diverged compensation or re-tune for
    all layers of the block. A single remedy is always allowed, however small the model.
    """
    taps = {spec.name: spec.tap for spec in family.linears}
    damped = {(r.block, taps[x.name]) for r in reports for x in r.layers if x.rungs}
    diverged = [r for r in reports if any(x.restored in DIVERGED for x in r.tunings.values())]
    layers = {(block, name) for block, tap in damped for name in taps if taps[name] == tap}
    layers |= {(report.block, name) for report in diverged for name in taps}
    if len(damped) + len(diverged) > 1 and 10 * len(layers) > family.n_blocks * len(taps):
        lines = [line for report in reports for line in _damped(report)]
        lines += [line for report in diverged for line in _restored(report)]
        lines += [MORE_DATA] * bool(damped) + [LESS_LR] * bool(diverged)
        raise InputError(f"more than a tenth of the layers needed a remedy: {'; '.join(lines)}")
