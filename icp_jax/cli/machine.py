"""What the machine must be for the command line: Linux, files by UTF-8 names, JAX's platforms."""

from __future__ import annotations

import logging
import os
import sys

from converters.names import shown
from converters.rules import first_line
from icp_jax import backend
from icp_jax.errors import InputError

PLATFORMS = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
REASON = 100  # characters of what JAX says


def linux() -> None:
    """Raises InputError on any other system."""
    if sys.platform != "linux":
        raise InputError(
            f"icp-jax runs on Linux only, and this is {sys.platform}: "
            "use a Linux machine, a container or WSL"
        )


def utf8() -> None:
    """Start anew in Python's UTF-8 mode where the locale would have names of files otherwise.

    The libraries that read weights and tokenizers take UTF-8 alone. What is printed stays in the
    locale's encoding. For the process that is the command line alone.
    """
    if sys.getfilesystemencoding().lower() == "utf-8" or not sys.executable:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    os.environ.setdefault("PYTHONIOENCODING", encoding)
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def names(args: list[str]) -> None:
    """Raises InputError for an argument that is not UTF-8: no library opens such a file."""
    for arg in args:
        try:
            arg.encode()
        except UnicodeEncodeError:
            raise InputError(f"{shown(arg)} is not UTF-8: rename the file") from None


def variables() -> None:
    """Raises InputError where JAX refuses one of its variables, such as JAX_ENABLE_X64=maybe."""
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise InputError(f"{error}") from None


def platforms() -> None:
    """Raises InputError where the variables ask JAX for what this machine does not have.

    To be called before JAX computes. Does nothing where no variable asks for a platform.
    """
    asked = {name: os.environ[name] for name in PLATFORMS if os.environ.get(name)}
    if not asked:
        return
    import jax

    try:
        jax.devices()
        return
    except (RuntimeError, AssertionError) as error:  # the second for what JAX knows and has not
        reason = first_line(error)
    logging.disable(logging.WARNING)  # what JAX says of other hardware
    jax.config.update("jax_platforms", None)
    jax.config.update("jax_platform_name", None)
    there = " and ".join(sorted({backend.name(), "cpu"}))
    given = " ".join(f"{name}={shown(value)[1:-1]}" for name, value in asked.items())
    told = f" ({reason[:REASON]})" if reason and "known backends" not in reason else ""
    raise InputError(
        f"{given}: JAX finds no such platform here{told}; there is {there}: "
        "set it to one of these, or unset it"
    )
