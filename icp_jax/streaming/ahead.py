"""How far the CPU's programs may run ahead of the host."""

from __future__ import annotations

from typing import TypeVar

from icp_jax.streaming.transfer import settle

T = TypeVar("T")

MOST = 1 << 25  # bytes that queued programs may hold


class Ahead:
    """Waits for results (`transfer.settle`) only once the queued programs hold MOST bytes.

    The host prepares the next programs while small ones compute. held: bytes that one program
    holds, its temporaries and results.
    """

    def __init__(self, held: int):
        self.held, self.queued = held, 0

    def __call__(self, tree: T) -> T:
        self.queued += self.held
        if self.queued < MOST:
            return tree
        self.queued = 0
        return settle(tree)
