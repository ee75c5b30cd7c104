"""Entry point of the command line. Bad input gives one line on standard error and status 2."""

from __future__ import annotations

import errno
import os
import sys

import absl.logging

from icp_jax.backend import compile_cache, heap
from icp_jax.cli import dispatch, interrupts, machine, standard
from icp_jax.cli.parse import PROG, parse
from icp_jax.errors import InputError


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status. argv: the arguments; unset: `sys.argv[1:]`."""
    from converters.names import shown
    from converters.rules import ConversionError
    from icp_jax.cli.options import as_options

    old: list[str] = []
    try:
        machine.linux()
        args = sys.argv[1:] if argv is None else argv
        if argv is None:
            machine.utf8()
            standard.prepare()
        _prepare()
        machine.names(args)
        with standard.written(InputError):
            command = parse(args, old.append)
        dispatch.run(command, _say)
        for line in old:  # last: an error is one line
            _say(line)
    except (InputError, ConversionError) as error:
        return _fail(as_options(f"{error}{_kept(error, '; stopped ')}"))
    except KeyboardInterrupt as error:
        return _fail(f"interrupted{_kept(error) or '; nothing was written'}", 130)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            nothing = "; nothing was kept: free some space, or choose an output on another disk"
            return _fail(f"the disk is full{_kept(error) or nothing}")
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENAMETOOLONG):
            name = shown(error.filename) if len(str(error.filename)) > 200 else error.filename
            why = f"{name}: {error.strerror}{_kept(error, '; stopped ')}"
            return _fail(f"cannot open {why}")
        if error.errno == errno.ENOENT and error.filename is None:
            return _fail("the current folder no longer exists: change to an existing one")
        raise
    except (MemoryError, RuntimeError) as error:  # XLA's errors are RuntimeErrors
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            advice = "run icp-jax plan to see what fits, or set --device-memory or --host-memory"
            return _fail(f"out of memory: {advice}{_kept(error, '; stopped ')}")
        raise
    return 0


def _prepare() -> None:
    """Set up the process. Must run before JAX, NumPy or transformers is imported."""
    # OpenBLAS threads compete with XLA's and slow the Cholesky factorization by seconds
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"
    compile_cache.use()
    heap.reuse()
    absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax also raises the errors it logs
    interrupts.install()


def _kept(error: BaseException, lead: str = " ") -> str:
    """The notes that `Work` adds to an exception: where and how to resume. Empty if none."""
    return "".join(lead + note for note in getattr(error, "__notes__", []))


def _fail(message: str, status: int = 2) -> int:
    _say(message)
    return status


def _say(message: str) -> None:
    print(f"{PROG}: {' '.join(message.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
