"""Transfers of the streams of hidden states to the device, one batch at a time.

A stream `[N, ...]` lives where `storage` puts it and is updated in place, without a second copy.
All batches have the same shape (the last is padded with zeros, with its number of real samples), so
they share one compiled function. The next batch is sent and the last results are fetched while the
current batch computes. On the CPU nothing is sent, and only one batch is in memory.
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

# Tokens (positions) per batch: fits a CPU's caches, fills a GPU.
BATCH_TOKENS = {"cpu": 1024}
BATCH_TOKENS_ELSEWHERE = 4096
MOMENT = 2e-4  # seconds; a program frees its temporaries shortly after its results are ready
GATHER_BYTES = 1 << 22  # most bytes per stream of a batch for compensation


def batch_tokens() -> int:
    """The backend's default number of tokens per batch."""
    return BATCH_TOKENS.get(backend.name(), BATCH_TOKENS_ELSEWHERE)


def batch_size(samples: int, positions: int, tokens: int | None = None, devices: int = 1) -> int:
    """Samples per batch of a forward pass, a multiple of the devices.

    tokens: positions per batch and device; None: the backend's default.
    """
    tokens = tokens or batch_tokens()
    return devices * max(1, min(-(-samples // devices), tokens // positions))


def gather_size(samples: int, nbytes: int) -> int:
    """Samples per transfer for compensation, which uses samples of `nbytes` one at a time."""
    return max(1, min(samples, 64, GATHER_BYTES // max(nbytes, 1)))


def settle(tree: T) -> T:
    """On the CPU, wait until `tree` is computed.

    A queued program already holds its temporaries and results there. On other backends the queue
    costs no memory, and the device should not wait for the host.
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
    """Yield (slice of samples, their batches on the devices, number of real samples).

    order: sample indices; None: all samples in order. The slice indexes `order`.
    """
    total = len(arrays[0]) if order is None else len(order)

    def send(start: int):
        where = slice(start, min(start + size, total))
        chosen = where if order is None else order[where]
        sent = [a.send(chosen) if isinstance(a, Samples) else placed(a[chosen]) for a in arrays]
        for a in arrays:  # on the CPU a batch may be a view; it is cheap to reread
            forget(a)
        return where, sent

    def placed(part):
        return devices.samples(_padded(part, size))

    def arrived(where, sent):
        parts = (placed(stack(part)) if isinstance(part, list) else part for part in sent)
        return where, tuple(parts), np.int32(where.stop - where.start)

    if backend.is_host():  # nothing to send
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
    settle: Callable[[Any], Any] = settle,
) -> list[Any]:
    """Run `y, aux = step(*batches, valid)` over all samples. Writes y to `out`, returns the aux.

    `out` may be one of `arrays`: each batch is read before it is written. settle: called with the
    results of each batch, to wait for them.
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
        results.append(devices.first(aux))
        tick(where.stop, len(out))

    for where, sent, valid in batches(arrays, size, devices=devices):
        y, aux = step(*sent, valid)
        if pending is not None:
            finish(*pending)
        pending = (where, *settle((y, aux)))
    if pending is not None:
        finish(*pending)
    return jax.device_get(results)
