"""The devices that share a run: sharded by samples in passes, by rows of W in pruning.

There is one mesh axis. Batches are sharded by samples, kernels by outputs (the rows of the paper's
W); params, sums and factors are replicated. This module only places arrays: the compiler
partitions the work and inserts the reductions. The loop is the same for one device, several
devices, and several hosts. With several hosts each process runs it on the same data and holds the
streams.
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
    """Placement of arrays on the devices. mesh: of one axis; None: JAX's default device."""

    mesh: Mesh | None = None

    @property
    def count(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def _across(self) -> bool:
        """Whether some devices belong to other processes."""
        return self.mesh is not None and jax.process_count() > 1

    def samples(self, tree: Any) -> Any:
        """Shard arrays `[b, ...]` by samples; b must be a multiple of the devices."""
        return self._put(tree, P(AXIS))

    def rows(self, kernel: jax.Array) -> jax.Array:
        """Shard a kernel `[in, out]` by outputs; replicate it if they do not divide evenly."""
        return self._put(kernel, P(None, AXIS) if kernel.shape[1] % self.count == 0 else P())

    def whole(self, tree: Any) -> Any:
        """Replicate arrays on every device, from any sharding or from each process's own copy."""
        return self._put(tree, P())

    def first(self, tree: Any) -> Any:
        """Arrays whole on this process's first device; replicated ones are not copied."""
        if self.mesh is None:
            return tree

        def one(x):
            x = x if x.is_fully_replicated else self.whole(x)
            return x.addressable_data(0)

        return jax.tree.map(one, tree)

    def agree(self, tree: Any) -> Any:
        """Replicate the first process's values, so that rounding differences do not diverge."""
        if self._across:
            from jax.experimental import multihost_utils

            tree = multihost_utils.broadcast_one_to_all(tree)
        return self.whole(tree)

    def tell(self, value: Any) -> Any:
        """Broadcast the first process's value, which must be JSON."""
        if not self._across:
            return value
        from jax.experimental import multihost_utils

        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        length = multihost_utils.broadcast_one_to_all(np.int32(len(text)))
        text = multihost_utils.broadcast_one_to_all(np.resize(text, int(length)))
        return json.loads(text.tobytes())

    def check_same(self, what: str, array: np.ndarray) -> None:
        """Raise Kept in every process if their bytes differ."""
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
    """Place an array on devices of several processes, from a global array or equal local copies."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(_same, out_shardings=sharding)(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])


ONE = Devices()


def choose(count: int | None = None) -> Devices:
    """The first `count` devices; None: one, or all across processes. Raises InputError."""
    available, processes = jax.device_count(), jax.process_count()
    if count is None:
        count = available if processes > 1 else 1
    if count > available:
        raise InputError(f"devices {count}: there are only {available} ({backend.name()})")
    if processes > 1 and count != available:
        raise InputError(
            f"devices {count}: several hosts always use all {available} devices: unset it"
        )
    return ONE if count == 1 else Devices(Mesh(np.array(jax.devices()[:count]), (AXIS,)))
