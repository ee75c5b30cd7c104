"""glibc's heap: what it keeps of freed buffers, which XLA has many of, and when they go.

Elsewhere than on glibc both do nothing. `benchmarks/bench_prune.py` measures what they bring.
"""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # from malloc.h
KEPT = 1 << 28  # bytes of the largest buffer kept: holes left by larger ones cost too much


def reuse() -> None:
    """Let all threads share one heap, and keep what is freed for the next program.

    Left alone, glibc returns every large buffer at once, and a program pays a page fault for
    each page of its temporaries whenever it runs. For processes that call `give_back`.
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
