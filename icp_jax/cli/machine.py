"""Checks of the environment: Linux, UTF-8 file names, and the JAX platforms asked for."""

from __future__ import annotations

import logging
import os
import sys

from converters.names import shown
from converters.rules import first_line
from icp_jax import backend
from icp_jax.errors import InputError

PLATFORMS = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
REASON = 100  # characters shown of JAX's own message


def linux() -> None:
    """Raise InputError if the system is not Linux."""
    if sys.platform != "linux":
        raise InputError(
            f"icp-jax runs on Linux only, and this is {sys.platform}: "
            "use a Linux machine, a container or WSL"
        )


def utf8() -> None:
    """Restart in Python's UTF-8 mode if the locale's file name encoding is not UTF-8.

    The libraries that read weights and tokenizers accept only UTF-8. Output keeps the locale's
    encoding. Call only from the command line's own process.
    """
    if sys.getfilesystemencoding().lower() == "utf-8" or not sys.executable:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    os.environ.setdefault("PYTHONIOENCODING", encoding)
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def names(args: list[str]) -> None:
    """Raise InputError for an argument that is not UTF-8."""
    for arg in args:
        try:
            arg.encode()
        except UnicodeEncodeError:
            raise InputError(f"{shown(arg)} is not UTF-8: rename the file") from None


def variables() -> None:
    """Raise InputError if JAX rejects an environment variable, such as JAX_ENABLE_X64=maybe."""
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise InputError(f"{error}") from None


def platforms() -> None:
    """Raise InputError if an environment variable selects a platform this machine lacks.

    Call before JAX computes anything. Does nothing if no such variable is set.
    """
    asked = {name: os.environ[name] for name in PLATFORMS if os.environ.get(name)}
    if not asked:
        return
    import jax

    try:
        jax.devices()
        return
    except (RuntimeError, AssertionError) as error:  # AssertionError: a known but absent platform
        reason = first_line(error)
    logging.disable(logging.WARNING)  # JAX warns about hardware it does not use
    jax.config.update("jax_platforms", None)
    jax.config.update("jax_platform_name", None)
    there = " or ".join(sorted({backend.name(), "cpu"}))
    given = " ".join(f"{name}={shown(value)[1:-1]}" for name, value in asked.items())
    told = f" ({reason[:REASON]})" if reason and "known backends" not in reason else ""
    raise InputError(
        f"{given}: JAX finds no such platform here{told}; set it to {there}, or unset it"
    )
