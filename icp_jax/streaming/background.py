"""Work of the host's in threads: behind the caller's back, or a few pieces at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
THREADS = 4  # at most: each may have a large tensor in hand


class Background:
    """Does what it is given in a thread, in order, while the caller goes on: a context manager.

    apart: whether in a thread at all, or at once. What a piece of work raises is raised by the next
    `run`, or on leaving; work that was given after it is not done.
    """

    def __init__(self, apart: bool):
        self._pool = ThreadPoolExecutor(1) if apart else None
        self._last: Future[None] | None = None

    def run(self, work: Callable[[], Any]) -> None:
        """Begin `work`, once all that was given before is done."""
        self._wait()
        self.then(work)

    def then(self, work: Callable[[], Any]) -> None:
        """Do `work` after what was given last."""
        if self._pool is None:
            work()
            return
        before = self._last

        def follow() -> None:
            if before is not None:
                before.result()
            work()

        self._last = self._pool.submit(follow)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self._wait()
            else:  # which is the one to tell of
                with contextlib.suppress(Exception):
                    self._wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`map` by a few threads, for work on files and arrays, which holds no lock of Python's."""
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
