"""ctrl-C and SIGTERM, taken where it is safe.

An exception raised by a signal while XLA calls back into Python may be lost, or bring the process
down. So once a run shows progress a signal waits for its next tick; a second one does not wait.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_waits = False  # for a tick
_signal = 0  # that came
_pending = False  # whether it waits still


def install() -> None:
    """Both signals raise KeyboardInterrupt, at once or in `at_ticks`. Main thread only."""
    global _waits, _signal, _pending
    _waits, _signal, _pending = False, 0, False
    with contextlib.suppress(ValueError):  # not the main thread: signals stay as they are
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
    """`tick`, which from its first call on raises the KeyboardInterrupt of a signal that came.

    One that came after the last call is raised on the way out.
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
