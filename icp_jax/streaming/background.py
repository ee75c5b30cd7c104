"""Host work in threads: in the background, or several items in parallel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
THREADS = 4  # at most, since each may hold a large tensor


class Background:
    """A context manager that runs tasks in order in one thread, while the caller continues.

    apart: False runs tasks at once, without a thread. An exception in a task is raised by the next
    `run` or on exit; the tasks after it are skipped.
    """

    def __init__(self, apart: bool):
        self._pool = ThreadPoolExecutor(1) if apart else None
        self._last: Future[None] | None = None

    def run(self, work: Callable[[], Any]) -> None:
        """Wait for all earlier tasks, then start `work`."""
        self._wait()
        self.then(work)

    def then(self, work: Callable[[], Any]) -> None:
        """Queue `work` after the last task."""
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
            else:  # the caller's own error takes precedence
                with contextlib.suppress(Exception):
                    self._wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`map` over a few threads, for work on files and arrays, which releases the GIL."""
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
