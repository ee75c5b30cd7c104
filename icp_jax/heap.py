"""glibc's heap, asked to keep less: it holds on to freed buffers, which XLA has many of.

Elsewhere than on glibc both do nothing. `benchmarks/bench_prune.py` measures what they bring.
"""

from __future__ import annotations

import contextlib
import ctypes

M_ARENA_MAX = -8  # from malloc.h


def one_arena() -> None:
    """Let all threads share one heap, so that one reuses what another has freed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def give_back() -> None:
    """Return freed heap to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
