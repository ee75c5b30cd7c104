"""The two streams of hidden states, sent to the device a batch at a time.

A stream `[N, ...]` lives where `places` puts it and is updated in place: there is never a second
copy.
Every batch has the same shape (the last one is padded with zeros and says how many samples are
real), so one compiled function serves them all. The next batch is on its way to the device
while this one computes, and results are fetched while the next one does; on the CPU, where
nothing travels, only one batch is held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax import backend
from icp_jax.streaming.mesh import ONE, Devices
from icp_jax.streaming.storage import Samples, Stream, forget, stack

T = TypeVar("T")

# Tokens (positions) that go through a block at once: what fits a CPU's caches, what fills a GPU.
BATCH_TOKENS = {"cpu": 1024}
BATCH_TOKENS_ELSEWHERE = 4096
MOMENT = 2e-4  # seconds; a program lets go of its temporaries just after its results are there
GATHER_BYTES = 1 << 22  # a batch of samples for compensation: at most so many bytes a stream


def batch_tokens() -> int:
    """Where nothing else is asked for."""
    return BATCH_TOKENS.get(backend.name(), BATCH_TOKENS_ELSEWHERE)


def batch_size(samples: int, positions: int, tokens: int | None = None, devices: int = 1) -> int:
    """Samples a batch for passes that only go forward, a multiple of the devices.

    tokens: positions a device at once, if not ours.
    """
    tokens = tokens or batch_tokens()
    return devices * max(1, min(-(-samples // devices), tokens // positions))


def gather_size(samples: int, nbytes: int) -> int:
    """Samples a transfer where one of `nbytes` at a time is used."""
    return max(1, min(samples, 64, GATHER_BYTES // max(nbytes, 1)))


def settle(tree: T) -> T:
    """On the CPU: wait until `tree` is computed.

    A program that is queued there has its temporaries and results allocated already. Elsewhere
    the queue costs no memory, and the device should not wait for the host.
    """
    if backend.is_host():
        jax.block_until_ready(tree)
        time.sleep(MOMENT)
    return tree


def _padded(part, size: int):
    if len(part) == size:
        return part
    if isinstance(part, jax.Array):
        return jnp.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1))
    out = np.zeros((size, *part.shape[1:]), part.dtype)
    out[: len(part)] = part
    return out


def batches(
    arrays: Sequence[Stream],
    size: int,
    order: np.ndarray | None = None,
    devices: Devices = ONE,
) -> Iterator[tuple[slice, tuple[jax.Array, ...], np.int32]]:
    """(which samples, the arrays' batches on the devices, how many are real), in order.

    order: sample indices; without it the samples as they lie. The slice counts in `order`.
    """
    total = len(arrays[0]) if order is None else len(order)

    def send(start: int):
        where = slice(start, min(start + size, total))
        chosen = where if order is None else order[where]
        sent = [a.send(chosen) if isinstance(a, Samples) else placed(a[chosen]) for a in arrays]
        for a in arrays:  # on the CPU a batch may still be a view: it is read again, which is cheap
            forget(a)
        return where, sent

    def placed(part):
        return devices.samples(_padded(part, size))

    def arrived(where, sent):
        parts = (placed(stack(part)) if isinstance(part, list) else part for part in sent)
        return where, tuple(parts), np.int32(where.stop - where.start)

    if backend.is_host():  # nothing travels
        for start in range(0, total, size):
            yield arrived(*send(start))
        return
    ahead = send(0)
    for start in range(size, total, size):
        now, ahead = ahead, send(start)
        yield arrived(*now)
    yield arrived(*ahead)


def advance(
    step: Callable[..., tuple[jax.Array, Any]],
    arrays: Sequence[Stream],
    out: Stream,
    size: int,
    tick: Callable[[int, int], None] = lambda done, total: None,
    devices: Devices = ONE,
) -> list[Any]:
    """`y, aux = step(*batches, valid)` over all samples; y goes to `out`, the aux are returned.

    `out` may be one of `arrays`: a batch is written only after it has been read.
    """
    pending: tuple[slice, Any, Any] | None = None
    results = []

    def finish(where, y, aux):
        y = devices.first(y)
        if isinstance(out, Samples):
            out[where] = y
        else:
            out[where] = np.asarray(y)[: where.stop - where.start]
            forget(out)
        results.append(aux)
        tick(where.stop, len(out))

    for where, sent, valid in batches(arrays, size, devices=devices):
        y, aux = step(*sent, valid)
        if pending is not None:
            finish(*pending)
        pending = (where, *settle((y, aux)))
    if pending is not None:
        finish(*pending)
    return jax.device_get(results)
