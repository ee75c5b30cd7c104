"""Read and write param trees with Orbax."""

from __future__ import annotations

import contextlib
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

Tree = dict[str, Any]


def _checkpointer(handler: type, **given: Any) -> Any:
    import orbax.checkpoint as ocp

    # only one of several processes calls this, so it must not wait for the others
    me, several = jax.process_index(), jax.process_count() > 1
    alone = ocp.options.MultiprocessingOptions(me, {me}, "alone") if several else None
    options = {"multiprocessing_options": alone} if alone else {}
    # not AsyncCheckpointer: its timeouts use the wall clock and end runs when that jumps
    return ocp.Checkpointer(handler(**given, **options), **options)


@cache
def _each_apart() -> type:
    """A handler that writes each array in its own future, so that all can be awaited.

    Orbax's own handler writes all arrays in one future, which ends at the first error while the
    other writes are still running.
    """
    from orbax.checkpoint import type_handlers

    class EachApart(type_handlers.NumpyHandler):
        def __init__(self) -> None:
            super().__init__()
            self.writes: list[Any] = []

        async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
            args = args or [type_handlers.SaveArgs()] * len(values)
            for one in zip(values, infos, args, strict=True):
                self.writes += await super().serialize(*([x] for x in one))
            return self.writes

        def wait(self) -> None:
            """Wait until all writes have ended."""
            for write in self.writes:
                with contextlib.suppress(Exception):  # the first error was already raised
                    write.result()

    return EachApart


def save_tree(folder: Path, tree: Any) -> None:
    """Write a tree of arrays to `folder`, which is complete or absent.

    All writes have ended on return, also after an error. Raises OSError if a write fails, which
    Orbax reports as ValueError.
    """
    import orbax.checkpoint as ocp

    arrays = _each_apart()()
    kinds = ((np.ndarray, arrays), (jax.Array, ocp.type_handlers.ArrayHandler()))
    registry = ocp.type_handlers.create_type_handler_registry(*kinds)
    try:
        with _checkpointer(ocp.PyTreeCheckpointHandler, type_handler_registry=registry) as saver:
            saver.save(folder.absolute(), args=ocp.args.PyTreeSave(jax.tree.map(np.asarray, tree)))
    except ValueError as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(folder)) from error
    finally:
        arrays.wait()


def read_tree(folder: Path) -> Any:
    """Read a tree as NumPy arrays. Raises OSError, ValueError or KeyError if there is none."""
    import orbax.checkpoint as ocp

    with _checkpointer(ocp.StandardCheckpointHandler) as checkpointer:
        path = folder.absolute()
        found = checkpointer.metadata(path).item_metadata
        if found is None:
            raise ValueError(f"no tree in {path}")
        shapes = found.tree
        hosts = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
        return checkpointer.restore(path, hosts)
