"""Robust standard output and standard error for the command line."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

ESCAPED = "backslashreplace"  # characters outside the encoding are shown as \xfc


def prepare() -> None:
    """Make both streams safe to write to. Call only from the command line's own process."""
    _fill()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ESCAPED)
    else:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors=ESCAPED, closefd=False)
    encoding = getattr(sys.stderr, "encoding", "utf-8")
    sys.stderr = Lossy(os.fdopen(2, "wb", closefd=False), encoding, ESCAPED, line_buffering=True)


def _fill() -> None:
    """Open closed descriptors on /dev/null, so that no log is written into the next opened file.

    Standard output is opened read-only: a result that cannot be written must be an error.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)


class Lossy(io.TextIOWrapper):
    """A stream that drops what cannot be written, so that logging never ends a run."""

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
    """Redirect a descriptor to /dev/null, so that flushing it at exit cannot fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


@contextlib.contextmanager
def written(failed: type[Exception], kept: object = None) -> Iterator[None]:
    """Flush standard output on exit and report a failed write.

    failed: exception to raise if writing fails; kept: path of the result, for the message.
    Raises SystemExit(1) without a message if the reader closed the pipe, as `| head` does.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:  # an error of opening a file, not of writing
            raise
        with contextlib.suppress(OSError):  # a stream without a descriptor
            silence(sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(1) from None
        there = f"; the result is in {kept}" if kept else ""
        raise failed(f"standard output cannot be written: {error.strerror}{there}") from None
