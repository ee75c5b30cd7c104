"""glibc's heap: keep freed buffers for reuse, and return them to the system on demand.

Both functions do nothing without glibc. `benchmarks/bench_prune.py` measures the gain.
"""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # from malloc.h
KEPT = 1 << 28  # bytes of the largest buffer to keep; larger ones fragment the heap
WORTH = 1 << 24  # bytes to return at least: the next program page-faults on what it takes again


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


def give_back(freed: int = WORTH) -> None:
    """Return freed heap to the system. freed: bytes that may be; too few are kept for reuse."""
    if freed < WORTH:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
