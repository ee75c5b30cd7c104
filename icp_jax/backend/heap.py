"""glibc's heap: keep freed buffers for reuse, and return them to the system on demand.

Both functions do nothing without glibc. `benchmarks/bench_prune.py` measures the gain.
"""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # from malloc.h
KEPT = 1 << 28  # bytes of the largest buffer to keep; larger ones fragment the heap


def reuse() -> None:
    """Share one heap among all threads, and keep freed buffers for the next program.

    By default glibc returns each large buffer at once, and every run of a program page-faults on
    its temporaries. For processes that call `give_back`.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def give_back() -> None:
    """Return freed heap to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
