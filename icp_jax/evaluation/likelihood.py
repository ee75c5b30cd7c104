"""Log-probabilities of continuations, for many requests in one pass over the blocks.

Requests are padded to a few lengths, so that few programs are compiled. The output layer sees the
positions of the continuations only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from icp_jax.errors import InputError
from icp_jax.evaluation import output
from icp_jax.phases import Progress
from icp_jax.streaming import storage, transfer
from icp_jax.streaming.hidden import Group, WholeSource, of_groups
from icp_jax.streaming.passes import compute_dtype

LEAST = 32  # shortest padded length; the others are powers of two and half-way between them


class Request(NamedTuple):
    """What a model reads, and the tokens that its last positions are to predict."""

    read: tuple[int, ...]
    continuation: tuple[int, ...]


class Row(NamedTuple):
    """What a model reads once, and the requests that read it."""

    read: tuple[int, ...]
    requests: list[int]


def request(context: Sequence[int], continuation: Sequence[int], most: int) -> tuple[Request, bool]:
    """(the request, whether its start was cut off). most: tokens that the model reads at once.

    Raises InputError.
    """
    if len(continuation) > most:
        raise InputError(
            f"a continuation of {len(continuation)} tokens exceeds the model's context of {most}: "
            "use a task of shorter answers"
        )
    whole = (*context, *continuation)
    found = Request(tuple(whole[-(most + 1) : -1]), tuple(continuation))
    return found, len(whole) > most + 1


def padded(length: int, most: int) -> int:
    """The length that a row is padded to, at most `most`."""
    size = LEAST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return min(size, most)


def likelihoods(
    source: WholeSource,
    requests: Sequence[Request],
    *,
    dtype: str = "auto",
    progress: Progress = lambda *event: None,
) -> list[tuple[float, bool]]:
    """(log-probability in nats, whether greedy decoding gives it) of each continuation.

    Requests that read the same tokens share a row. Blocks are read once for as many rows as fit in
    a quarter of the free memory. Raises InputError if a log-probability is not finite.
    """
    dtype, rows = compute_dtype(dtype), _rows(requests)
    scorer = _Scorer(source, requests, dtype)
    blocks, done = source.family.n_blocks, 0
    for part in _parts(rows, source.family.hidden_size, source.family.context):
        groups = [Group(_windows(same, length), size) for length, size, same in part]
        needed = sum(4 * g.windows.size * source.family.hidden_size for g in groups)
        place = storage.choose("auto", needed, storage.device_free() // 2, storage.host_free() // 2)

        def tick(passed: int, before: int = done * blocks) -> None:
            progress(-1, "evaluate", before + passed, len(rows) * blocks + 1, None)

        hidden = of_groups(source, groups, dtype, place, tick)
        for (_, size, same), x in zip(part, hidden, strict=True):
            scorer.add(same, x, size)
            done += len(same)
    return scorer.result(progress, len(rows) * blocks + 1)


def _rows(requests: Sequence[Request]) -> list[Row]:
    """The distinct rows, the longest first."""
    found: dict[tuple[int, ...], Row] = {}
    for k, (read, continuation) in enumerate(requests):
        if continuation:
            found.setdefault(read, Row(read, [])).requests.append(k)
    return sorted(found.values(), key=lambda row: -len(row.read))


def _parts(
    rows: Sequence[Row], width: int, context: int
) -> Iterator[list[tuple[int, int, list[Row]]]]:
    """Parts of the rows whose hidden states fit: (padded length, batch size, rows) by length."""
    room = storage.host_free() // 4
    by_length: dict[int, list[Row]] = {}
    held = 0
    for row in rows:
        length = padded(len(row.read), context)
        if held and held + 4 * length * width > room:
            yield _sized(by_length)
            by_length, held = {}, 0
        by_length.setdefault(length, []).append(row)
        held += 4 * length * width
    if by_length:
        yield _sized(by_length)


def _sized(by_length: dict[int, list[Row]]) -> list[tuple[int, int, list[Row]]]:
    """With the batch size of each length: the same for any number of rows."""
    most = transfer.batch_tokens()
    return [(n, transfer.batch_size(most, n), rows) for n, rows in by_length.items()]


def _windows(rows: Sequence[Row], length: int) -> Int[np.ndarray, "w t"]:
    windows = np.zeros((len(rows), length), np.int32)
    for window, row in zip(windows, rows, strict=True):
        window[: len(row.read)] = row.read
    return windows


class _Scorer:
    """Collects the positions to score until there are enough for the output layer."""

    def __init__(self, source: WholeSource, requests: Sequence[Request], dtype: str):
        head = output.of(source.family, source.embed(), source.head(), dtype)
        self.requests, (self.layout, self.weights) = requests, head
        self.sums = np.zeros(len(requests), np.float64)
        self.greedy = np.ones(len(requests), bool)
        self._x: list[np.ndarray] = []
        self._targets: list[int] = []
        self._owners: list[int] = []

    def add(self, rows: Sequence[Row], hidden: storage.Stream, size: int) -> None:
        """Take the positions of the rows' continuations from their hidden states `[W, T, D]`."""
        for where, (batch,), _ in transfer.batches([hidden], size):
            x = np.asarray(batch)
            for k, row in enumerate(rows[where]):
                for owner in row.requests:
                    target = self.requests[owner].continuation
                    end = len(row.read)
                    self._x.append(x[k, end - len(target) : end])
                    self._targets += target
                    self._owners += [owner] * len(target)
            while len(self._targets) >= self.layout.rows:
                self._score(self.layout.rows)

    def _score(self, count: int) -> None:
        """Score the first `count` positions, padded to the rows of the output layer."""
        held: Float[np.ndarray, "n d"] = np.concatenate(self._x)
        owners, targets = np.asarray(self._owners), np.asarray(self._targets, np.int32)
        pad = self.layout.rows - count
        x = np.pad(held[:count], ((0, pad), (0, 0)))
        found = output.scores(self.layout, self.weights, x, np.pad(targets[:count], (0, pad)))
        score, first = (np.asarray(y)[:count] for y in found)
        np.add.at(self.sums, owners[:count], score)
        np.logical_and.at(self.greedy, owners[:count], first)
        self._x = [held[count:]]
        self._targets, self._owners = self._targets[count:], self._owners[count:]

    def result(self, progress: Progress, total: int) -> list[tuple[float, bool]]:
        if self._targets:
            self._score(len(self._targets))
        progress(-1, "evaluate", total, total, None)
        if not np.all(np.isfinite(self.sums)):
            raise InputError(
                "a log-probability is not finite: the model's weights or activations overflow"
            )
        return [(float(s), bool(g)) for s, g in zip(self.sums, self.greedy, strict=True)]
