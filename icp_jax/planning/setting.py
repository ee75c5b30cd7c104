"""The shapes of a run with given memory settings: batches, streams, and blocks on the device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icp_jax import backend
from icp_jax.config import MemoryConfig
from icp_jax.core.passes import Apply
from icp_jax.core.pruners import with_solver
from icp_jax.planning.programs import Programs, shape
from icp_jax.planning.workload import Params, Workload, size
from icp_jax.streaming import passes, transfer


class Setting:
    """A run with given memory settings; `memory.streams` must be a place, not auto."""

    def __init__(self, work: Workload, memory: MemoryConfig):
        self.work, self.memory, self.programs = work, memory, Programs()
        self.one = work.hidden(memory.stream_dtype)  # one sample of a stream
        self.samples, self.devices = work.config.calibration.count, work.config.devices or 1
        self.positions = work.positions
        share = -(-self.samples // self.devices)
        self.batch = transfer.batch_size(share, self.positions, memory.batch_tokens)
        self.gather = transfer.gather_size(self.samples, size(self.one))

    def blocks(self) -> Iterator[Block]:
        """One block for each combination of module and shapes."""
        seen = set()
        for t, stored in enumerate(self.work.blocks):
            module = self.work.family.block_at(t)
            kind = (module, tuple(x.shape for x in jax.tree.leaves(stored)))
            if kind not in seen:
                seen.add(kind)
                yield Block(self, module, stored)


class Block:
    """One kind of block on the device."""

    def __init__(self, setting: Setting, module: Any, stored: Params):
        self.setting, self.work, self.beside = setting, setting.work, setting.programs.beside
        config = self.work.config.prune
        self.apply = Apply(module, passes.compute_dtype(self.work.config.dtype))
        self.method = with_solver(config.method, config.solver)
        self.stored, self.params = stored, jax.tree.map(lambda leaf: shape(leaf.shape), stored)
        one = setting.one
        self.x = shape((setting.batch, *one.shape[1:]), one.dtype)
        self.few = shape((setting.gather, *one.shape[1:]), one.dtype)  # samples for compensation
        self.held, self.sent, self.count = size(self.params), size(self.x), np.int32(1)
        # with several accelerators, the first one also has the whole batch before it is split
        several = setting.devices > 1 and not backend.is_host()
        self.whole = self.sent * setting.devices if several else 0

    @property
    def narrow(self) -> int:
        """Bytes of the leaves that are not stored in float32."""
        return size([x for x in jax.tree.leaves(self.stored) if x.dtype != jnp.float32])

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linears."""
        return {s.name: self.stored[s.name]["kernel"].shape for s in self.work.family.linears}
