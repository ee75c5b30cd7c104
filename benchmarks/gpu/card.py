"""The card: what nvidia-smi says of it, and how a process is kept to a part of its memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator

QUICK = "--xla_backend_optimization_level=0"


def ask(field: str) -> str:
    """What nvidia-smi says of the card; empty where there is none."""
    asked = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""
    return said.splitlines()[0] if said else ""


def environment(cache: str, pool_mib: int = 0) -> dict[str, str]:
    """A child's variables: the card is its own, and JAX's pool no larger than asked for.

    cache: where compiled programs are kept; pool_mib: 0 takes memory as it is needed.
    """
    own = ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR")  # of the process that asks
    found = {k: v for k, v in os.environ.items() if k not in own}
    if platform := os.environ.get("GPU_CHECK_PLATFORM"):  # a check without a card
        found["JAX_PLATFORMS"] = platform
        found["XLA_FLAGS"] = QUICK  # nothing is timed that matters, and compiling is most of it
    found["XDG_CACHE_HOME"] = cache
    found["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true" if pool_mib else "false"
    if pool_mib and (total := ask("memory.total")):
        found["XLA_CLIENT_MEM_FRACTION"] = f"{pool_mib / int(total):.6f}"
    return found


@contextlib.contextmanager
def most_used() -> Iterator[list[int]]:
    """A list whose one entry is, at the end, the most MiB of the card that were in use."""
    found, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(1):
            found[0] = max(found[0], int(ask("memory.used") or 0))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        done.set()
        looking.join()
