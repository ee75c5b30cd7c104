"""Standard output and standard error of the command line, whatever lies behind them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

ESCAPED = "backslashreplace"  # what an encoding lacks is shown as \xfc, never an error


def prepare() -> None:
    """Make both streams safe to write to. For the process that is the command line alone."""
    _fill()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ESCAPED)
    else:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors=ESCAPED, closefd=False)
    encoding = getattr(sys.stderr, "encoding", "utf-8")
    sys.stderr = Lossy(os.fdopen(2, "wb", closefd=False), encoding, ESCAPED, line_buffering=True)


def _fill() -> None:
    """Closed descriptors lead nowhere: else the next file opened gets XLA's log written into it.

    Standard output cannot be written to even so, for a result that nobody gets is an error.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)


class Lossy(io.TextIOWrapper):
    """A stream whose lines are lost where they cannot be written: a run is worth more."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            silence(self.fileno())
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            silence(self.fileno())


def silence(number: int) -> None:
    """Let a descriptor lead nowhere, so that what is still buffered is no error at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


@contextlib.contextmanager
def written(failed: type[Exception], kept: object = None) -> Iterator[None]:
    """All that the body prints is on standard output when it is left, or it is said why not.

    failed: raised where nothing more can be written; kept: the folder or file that is there.
    Raises SystemExit(1), without a word, where the reader has gone, as `| head` does.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:  # no write, but some file's opening
            raise
        with contextlib.suppress(OSError):  # a stream without a descriptor
            silence(sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(1) from None
        there = f"; the result is in {kept}" if kept else ""
        raise failed(f"standard output cannot be written: {error.strerror}{there}") from None
