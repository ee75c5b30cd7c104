"""Param trees on disk, by Orbax."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # it logs errors that are raised as well
    # Of several hosts' processes, one calls this: the others must not be waited for.
    me, several = jax.process_index(), jax.process_count() > 1
    alone = ocp.options.MultiprocessingOptions(me, {me}, "alone") if several else None
    options = {"multiprocessing_options": alone} if alone else {}
    # Not the asynchronous one: its timeouts go by the wall clock, and end runs when that jumps.
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(**options), **options)


def save_tree(folder: Path, tree: Any) -> None:
    """Write a tree of arrays to `folder`, which appears whole or not at all.

    Raises OSError where the system refuses: Orbax hands its errors on as ValueErrors.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = _without_late_writes(hook)
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(folder.absolute(), jax.tree.map(np.asarray, tree))
    except ValueError as error:  # the hook stays: other writes may still be under way
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(folder)) from error
    sys.unraisablehook = hook


def _without_late_writes(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`hook`, but for what Orbax's other writes print when they end after one that failed."""

    def quiet(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return quiet


def read_tree(folder: Path) -> Any:
    """The tree as NumPy arrays. Raises OSError, ValueError or KeyError for what is no tree."""
    with _checkpointer() as checkpointer:
        path = folder.absolute()
        shapes = checkpointer.metadata(path).item_metadata.tree
        hosts = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
        return checkpointer.restore(path, hosts)
