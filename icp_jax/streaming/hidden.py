"""The last hidden states of a model for windows of tokens, with one block on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int

from icp_jax.core.passes import Apply, Params
from icp_jax.models.spec import Family
from icp_jax.streaming import storage, transfer
from icp_jax.streaming.passes import embed_batch, forward, to_device
from icp_jax.streaming.storage import Place, Stream
from icp_jax.streaming.unpacking import to_move


@runtime_checkable
class WholeSource(Protocol):
    """A source of all parts of a model, the head included."""

    @property
    def family(self) -> Family: ...
    def embed(self) -> Params: ...
    def block(self, t: int) -> Params: ...
    def forget(self) -> None: ...
    def head(self) -> Params: ...


def place(families: list[Family], windows: np.ndarray) -> Place:
    """Where the hidden states of all models are kept: the first place with room for them."""
    needed = 4 * windows.size * sum(family.hidden_size for family in families)
    return storage.choose("auto", needed, storage.device_free() // 2, storage.host_free() // 2)


class Group(NamedTuple):
    """Windows of one length. size: windows of a batch."""

    windows: Int[np.ndarray, "w t"]
    size: int


def last_hidden(
    source: WholeSource,
    windows: np.ndarray,
    dtype: str,
    place: Place,
    tick: Callable[[int], None] = lambda done: None,
) -> Stream:
    """The hidden states `[W, T, D]` float32 after the last block, see `of_groups`."""
    group = Group(windows, transfer.batch_size(*windows.shape))
    return of_groups(source, [group], dtype, place, tick)[0]


def of_groups(
    source: WholeSource,
    groups: Sequence[Group],
    dtype: str,
    place: Place,
    tick: Callable[[int], None] = lambda done: None,
    folder: Path | None = None,
) -> list[Stream]:
    """The hidden states `[W, T, D]` float32 of each group after the last block.

    Every block is read once. place: `disk` is an unnamed file in the folder, by default the one for
    temporary files. tick: called with the number of windows that have passed, counted for every
    block.
    """
    family, hidden, done = source.family, embedded(source, groups, place, folder), 0
    for t in range(family.n_blocks):
        step = partial(forward, Apply(family.block_at(t), dtype), to_device(to_move(source, t)))
        source.forget()
        for (windows, size), x in zip(groups, hidden, strict=True):
            transfer.advance(step, [x], x, size, partial(_passed, tick, done))
            done += len(windows)
        del step  # before the next block is sent
    return hidden


def embedded(
    source: WholeSource, groups: Sequence[Group], place: Place, folder: Path | None = None
) -> list[Stream]:
    """The hidden states of each group before the first block, see `of_groups`."""
    family, embed = source.family, jax.device_put(source.embed())  # only rows in use are widened
    shapes = [(*windows.shape, family.hidden_size) for windows, _ in groups]
    hidden = [storage.empty(shape, "float32", place, folder) for shape in shapes]

    def start(tokens, valid):
        return embed_batch(family.embed, "float32", embed, tokens)

    for (windows, size), x in zip(groups, hidden, strict=True):
        transfer.advance(start, [windows], x, size)
    return hidden


def _passed(tick: Callable[[int], None], before: int, done: int, total: int) -> None:
    """Report the windows that have passed a block, and those before them."""
    tick(before + done)
