"""Start and end of a run that is shared by processes on several hosts.

All processes run the same loop on the same data (see `mesh`); only the first one writes files.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax

from converters.rules import first_line
from icp_jax.errors import InputError

PATIENCE = 24 * 3600  # seconds to wait while the first process checks and publishes its files


@contextlib.contextmanager
def launch(coordinator: str, count: int | None, index: int | None) -> Iterator[bool]:
    """Join the `count` processes of a run. Yields whether this process writes files.

    coordinator: HOST:PORT on which process 0 listens; `auto` if the cluster (Slurm, Open MPI,
    Kubernetes, TPU pods) configures JAX; empty for a run of one process. Enter the context before
    any other use of JAX. It exits when all processes are done; on an error it exits at once, which
    ends the other processes too. Raises InputError.
    """
    if not coordinator:
        if (count, index) != (None, None):
            raise InputError("hosts.count and hosts.index need --hosts.coordinator")
        yield True
        return
    settings: dict[str, Any] = {"shutdown_timeout_seconds": PATIENCE}
    if coordinator != "auto":
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdigit()):
            raise InputError(f"hosts.coordinator must be HOST:PORT or auto, got {coordinator!r}")
        if count is None or index is None or not 0 <= index < count:
            raise InputError(
                "hosts.count and hosts.index must be set, with 0 <= index < count; "
                f"got count {count}, index {index}"
            )
        settings |= {"coordinator_address": coordinator}
        settings |= {"num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(**settings)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"hosts.coordinator {coordinator}: {first_line(error)}") from None
    try:
        with _quiet():
            yield jax.process_index() == 0
    except BaseException as error:
        # a clean shutdown could deadlock: it waits for processes that may wait for this one
        atexit.register(_end, 130 if isinstance(error, KeyboardInterrupt) else 2)
        reason = first_line(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and "memory" not in reason.lower():
            lost = InputError(f"the hosts cannot continue together: {reason}; start all again")
            lost.__notes__ = getattr(error, "__notes__", [])
            raise lost from None
        raise
    jax.distributed.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Redirect standard output to standard error, since Gloo prints messages there."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _end(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
