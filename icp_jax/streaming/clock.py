"""The time that a block spends in each phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from icp_jax.backend import heap
from icp_jax.phases import Phase


class Clock:
    """Seconds by phase since the last take(). Returns freed heap to the system after a phase.

    freed: bytes that a phase may free.
    """

    def __init__(self, freed: int = heap.WORTH):
        self.freed, self.seconds = freed, dict[str, float]()

    @contextmanager
    def __call__(self, phase: Phase, give_back: bool = True) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            if give_back:
                heap.give_back(self.freed)
            taken = time.perf_counter() - started
            self.seconds[phase.name] = self.seconds.get(phase.name, 0) + taken

    def take(self) -> dict[str, float]:
        taken, self.seconds = self.seconds, {}
        return taken
