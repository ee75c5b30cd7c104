"""The devices that share a run: samples over them going forward, rows of W while pruning.

One mesh axis. Batches are split by samples, kernels by outputs (the rows of the paper's W);
params, sums and factors are whole on every device. Only the placing is said here: the compiler
splits the work accordingly and adds up what samples on several devices contribute. The loop is
the same with one device, with several, and with those of several hosts, where every process runs
it on the same data and holds the streams.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from icp_jax import backend
from icp_jax.errors import InputError, Kept
from icp_jax.streaming import storage

AXIS = "devices"


@dataclass(frozen=True)
class Devices:
    """How arrays lie on a run's devices. mesh: of one axis; None is JAX's default device alone."""

    mesh: Mesh | None = None

    @property
    def count(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def _across(self) -> bool:
        """Whether some of the devices are other processes'."""
        return self.mesh is not None and jax.process_count() > 1

    def samples(self, tree: Any) -> Any:
        """Arrays `[b, ...]`, b a multiple of the devices, split along the samples."""
        return self._put(tree, P(AXIS))

    def rows(self, kernel: jax.Array) -> jax.Array:
        """A kernel `[in, out]` split along the outputs, or whole where they do not divide."""
        return self._put(kernel, P(None, AXIS) if kernel.shape[1] % self.count == 0 else P())

    def whole(self, tree: Any) -> Any:
        """The same arrays on every device: from any layout, or from every process's own copy."""
        return self._put(tree, P())

    def first(self, tree: Any) -> Any:
        """Arrays, split or whole, on this process's first device; whole ones are not copied."""
        if self.mesh is None:
            return tree

        def one(x):
            x = x if x.is_fully_replicated else self.whole(x)
            return x.addressable_data(0)

        return jax.tree.map(one, tree)

    def agree(self, tree: Any) -> Any:
        """What every process has worked out alone, whole: the first one's, lest roundings part."""
        if self._across:
            from jax.experimental import multihost_utils

            tree = multihost_utils.broadcast_one_to_all(tree)
        return self.whole(tree)

    def tell(self, value: Any) -> Any:
        """The first process's plain value (of JSON), to all."""
        if not self._across:
            return value
        from jax.experimental import multihost_utils

        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        length = multihost_utils.broadcast_one_to_all(np.int32(len(text)))
        text = multihost_utils.broadcast_one_to_all(np.resize(text, int(length)))
        return json.loads(text.tobytes())

    def check_same(self, what: str, array: np.ndarray) -> None:
        """Raises Kept in every process where they do not hold the same bytes."""
        if self._across:
            from jax.experimental import multihost_utils

            seen = np.int32(zlib.crc32(np.ascontiguousarray(array).data) >> 1)
            if len(set(np.ravel(multihost_utils.process_allgather(seen)).tolist())) > 1:
                raise Kept(f"the hosts have different {what}: give all of them the same")

    def _put(self, tree: Any, spec: P) -> Any:
        if self.mesh is None:
            return jax.device_put(tree, storage.here())
        sharding = NamedSharding(self.mesh, spec)
        if self._across:
            return jax.tree.map(partial(_place, sharding), tree)
        return jax.device_put(tree, sharding)


def _same(x):
    return x


def _place(sharding: NamedSharding, x: Any) -> jax.Array:
    """An array on devices of several processes; each has all of `x`, or a part of a global one."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(_same, out_shardings=sharding)(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])


ONE = Devices()


def choose(count: int | None = None) -> Devices:
    """The first `count` devices; unset: one, or across processes all. Raises InputError."""
    there, processes = jax.device_count(), jax.process_count()
    if count is None:
        count = there if processes > 1 else 1
    if count > there:
        raise InputError(f"devices {count}: there are only {there} ({backend.name()})")
    if processes > 1 and count != there:
        raise InputError(f"devices {count}: several hosts share all of their {there}: leave it out")
    return ONE if count == 1 else Devices(Mesh(np.array(jax.devices()[:count]), (AXIS,)))
