"""Allocation of sparsity: alpha across blocks, beta within a block.

Sparsities become integer counts of zeros by largest remainders, so every total is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from icp_jax.errors import Infeasible, InputError
from icp_jax.models.spec import Rearrangement


def apportion(shares: Sequence[float], total: int) -> list[int]:
    """Integers near `shares` that sum to `total`; the largest fractions are rounded up first."""
    counts = [math.floor(share) for share in shares]
    by_fraction = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for i in by_fraction[: total - sum(counts)]:
        counts[i] += 1
    return counts


def across_blocks(sizes: Sequence[int], sparsity: float, alpha: float) -> list[int]:
    """Zeros of each block; they sum to s·Σsizes, rounded. sizes: prunable weights per block.

    The last block gets a sparsity of alpha·s. The earlier blocks make up for it in proportion to
    their sizes: s + (1-alpha)·s/(L-1) each if all blocks are equal. With alpha ≥ 1 or a single
    block the sparsity is uniform. Raises Infeasible if an earlier block would be pruned entirely.
    """
    if not 0 <= sparsity < 1:
        raise InputError(f"sparsity must be in [0, 1), got {sparsity:g}")
    if not alpha >= 0:
        raise InputError(f"alpha must be at least 0, got {alpha:g}")
    total = round(sparsity * sum(sizes))
    if alpha >= 1 or len(sizes) == 1:
        return apportion([total * size / sum(sizes) for size in sizes], total)
    *earlier, last = sizes
    spared = alpha * sparsity * last
    rate = (sparsity * sum(sizes) - spared) / sum(earlier)
    if rate >= 1:
        smallest = (sparsity * sum(sizes) - sum(earlier)) / (sparsity * last)
        raise Infeasible(
            f"alpha {alpha:g} at sparsity {sparsity:g} would prune the earlier blocks to "
            f"{rate:.3f}; alpha must be above {_up(smallest)}"
        )
    return apportion([*(rate * size for size in earlier), spared], total)


def within_block(
    sizes: Mapping[str, int], zeros: int, beta: float, rearrangement: Rearrangement | None
) -> dict[str, int]:
    """Zeros of each role of a block; they sum to `zeros`. sizes: weights per role.

    Roles in `gives` are pruned to (1-beta) times the block's sparsity. The rest is shared by the
    roles in `takes`, in proportion to their sizes. Without a rearrangement all are pruned alike.
    Raises Infeasible if a role would reach 1.
    """
    if not 0 <= beta <= 1:
        raise InputError(f"beta must be in [0, 1], got {beta:g}")
    sparsity = zeros / sum(sizes.values())
    rates = {role: sparsity for role in sizes}
    if rearrangement is not None:
        rates |= _rearranged(sizes, sparsity, beta, rearrangement)
    counts = apportion([rates[role] * size for role, size in sizes.items()], zeros)
    return dict(zip(sizes, counts, strict=True))


def _rearranged(
    sizes: Mapping[str, int], sparsity: float, beta: float, rearrangement: Rearrangement
) -> dict[str, float]:
    """The sparsities of the roles that give and take."""
    if unknown := {*rearrangement.gives, *rearrangement.takes} - set(sizes):
        names = ", ".join(sorted(unknown))
        raise InputError(f"rearrangement: no layer has the role {names}; use {', '.join(sizes)}")
    gives = sum(sizes[role] for role in rearrangement.gives)
    takes = sum(sizes[role] for role in rearrangement.takes)
    raised = sparsity * (1 + beta * gives / takes)
    if beta and raised >= 1:
        largest = (1 / sparsity - 1) * takes / gives
        raise Infeasible(
            f"beta {beta:g} at a block sparsity of {sparsity:.4f} would prune "
            f"{', '.join(rearrangement.takes)} to {raised:.3f}; "
            f"the largest feasible beta is {_down(largest)}"
        )
    rates = {role: sparsity * (1 - beta) for role in rearrangement.gives}
    return rates | {role: raised for role in rearrangement.takes}


def _down(x: float) -> str:
    """Four digits, strictly below x."""
    return f"{max(math.ceil(x * 1e4) - 1, 0) / 1e4:.4f}"


def _up(x: float) -> str:
    return f"{math.ceil(x * 1e4) / 1e4:.4f}"
