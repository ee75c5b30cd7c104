"""Param trees on disk, by Orbax."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

Tree = dict[str, Any]


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    # what is logged here is raised as well
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_not_of_orbax)
    # Of several hosts' processes, one calls this: the others must not be waited for.
    me, several = jax.process_index(), jax.process_count() > 1
    alone = ocp.options.MultiprocessingOptions(me, {me}, "alone") if several else None
    options = {"multiprocessing_options": alone} if alone else {}
    # Not the asynchronous one: its timeouts go by the wall clock, and end runs when that jumps.
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(**options), **options)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.getMessage()


def save_tree(folder: Path, tree: Any) -> None:
    """Write a tree of arrays to `folder`, which appears whole or not at all.

    Raises OSError where the system refuses: Orbax hands its errors on as ValueErrors.
    """
    hook, late = sys.unraisablehook, _LateWrites(sys.unraisablehook)
    sys.unraisablehook = late
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(folder.absolute(), jax.tree.map(np.asarray, tree))
    except ValueError as error:  # the hook stays, for those that take longer than the wait
        late.wait()
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(folder)) from error
    sys.unraisablehook = hook


class _LateWrites:
    """A hook for unraisable errors that keeps Orbax's other writes quiet when one has failed.

    They go on after the error is raised, and find nobody to report to when they end.
    """

    def __init__(self, hook: Callable[[Any], Any]):
        self.hook, self.ended = hook, 0

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) == "Event loop is closed":
            self.ended += 1
        else:
            self.hook(unraisable)

    def wait(self) -> None:
        """Until none has ended for a while."""
        seen = -1
        while seen != self.ended:
            seen = self.ended
            time.sleep(0.3)


def read_tree(folder: Path) -> Any:
    """The tree as NumPy arrays. Raises OSError, ValueError or KeyError for what is no tree."""
    with _checkpointer() as checkpointer:
        path = folder.absolute()
        shapes = checkpointer.metadata(path).item_metadata.tree
        hosts = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
        return checkpointer.restore(path, hosts)


def lies_transposed(leaf: Any) -> bool:
    """Whether a matrix lies in memory by columns."""
    if not isinstance(leaf, np.ndarray) or leaf.ndim != 2:
        return False
    return leaf.flags.f_contiguous and not leaf.flags.c_contiguous


def apart(params: Tree) -> tuple[Tree, Tree]:
    """(what lies by rows, the transposes of what lies by columns): so the host turns nothing."""
    plain: Tree = {}
    turned: Tree = {}
    for name, leaf in params.items():
        if isinstance(leaf, Mapping):
            plain[name], turned[name] = apart(dict(leaf))
        elif lies_transposed(leaf):
            turned[name] = leaf.T
        else:
            plain[name] = leaf
    return plain, turned


def together(plain: Tree, turned: Tree) -> Tree:
    """The inverse of `apart`."""
    params = dict(plain)
    for name, leaf in turned.items():
        inside = isinstance(leaf, Mapping)
        params[name] = together(plain.get(name, {}), leaf) if inside else leaf.T
    return params
