"""The pages of mapped files: read ahead of use, and freed after it."""

from __future__ import annotations

import mmap
from collections.abc import Iterable


def fetch(file: mmap.mmap, start: int, nbytes: int) -> None:
    """Prefetch a part of a file in the background."""
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    if nbytes and hasattr(mmap, "MADV_WILLNEED"):
        file.madvise(mmap.MADV_WILLNEED, first, start + nbytes - first)


def forget(files: Iterable[mmap.mmap]) -> None:
    """Free the memory of what was read so far. Views stay valid and are reread on use."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for file in files:
            file.madvise(mmap.MADV_DONTNEED)
