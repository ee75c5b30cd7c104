"""Handle Ctrl-C and SIGTERM where it is safe.

An exception raised while XLA calls back into Python may be lost or crash the process. So during a
run, a signal takes effect at the next progress tick; a second signal exits at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_waits = False  # signals take effect at the next tick
_signal = 0  # number of the received signal
_pending = False  # a signal is waiting for a tick


def install() -> None:
    """Make both signals raise KeyboardInterrupt, at once or at a tick. Main thread only."""
    global _waits, _signal, _pending
    _waits, _signal, _pending = False, 0, False
    with contextlib.suppress(ValueError):  # not the main thread: keep the current handlers
        signal.signal(signal.SIGINT, _take)
        signal.signal(signal.SIGTERM, _take)


def _take(number: int, frame: FrameType | None) -> None:
    global _signal, _pending
    if _signal:
        os._exit(128 + number)
    _signal = number
    _pending = _waits
    if not _waits:
        raise KeyboardInterrupt


@contextlib.contextmanager
def at_ticks(tick: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Yield a wrapper of `tick` that raises KeyboardInterrupt if a signal was received.

    Signals are delayed from its first call on; one after the last call is raised on exit.
    """
    global _waits, _pending

    def checked(*args: Any) -> None:
        global _waits, _pending
        _waits = True
        if _signal:
            _pending = False
            raise KeyboardInterrupt
        tick(*args)

    try:
        yield checked
    finally:
        _waits = False
    if _pending:
        _pending = False
        raise KeyboardInterrupt
