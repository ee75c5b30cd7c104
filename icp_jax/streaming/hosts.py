"""A run that processes on several hosts share: how they meet, and how they part.

All of them run the same loop on the same data (`mesh`); the first one alone writes files.
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

PATIENCE = 24 * 3600  # seconds in which the first process may check and publish what it wrote


@contextlib.contextmanager
def launch(coordinator: str, count: int | None, index: int | None) -> Iterator[bool]:
    """Make this process one of `count` that share a run; gives whether it is the one that writes.

    coordinator: HOST:PORT on which process 0 listens; `auto` where the cluster (Slurm, Open MPI,
    Kubernetes, TPU pods) tells JAX everything; or nothing, for a run of one process. To be
    entered before anything else is asked of JAX; left when all processes are done, or at once
    with an error, which ends the others too. Raises InputError.
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
            raise InputError("hosts.count and hosts.index: how many, and which, from 0, this is")
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
        # A clean end would wait for the others, and they may be waiting for this process.
        atexit.register(_end, 130 if isinstance(error, KeyboardInterrupt) else 2)
        reason = first_line(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and "memory" not in reason.lower():
            lost = InputError(f"the hosts cannot go on together: {reason}")
            lost.__notes__ = getattr(error, "__notes__", [])
            raise lost from None
        raise
    jax.distributed.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Standard output is for the result, but Gloo greets its peers there: to standard error."""
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
