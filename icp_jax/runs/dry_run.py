"""A dry run: the zeros of every layer and the cost of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

from icp_jax.config import RunConfig, check
from icp_jax.core.choice import LEFT
from icp_jax.planning import cost
from icp_jax.planning.budgets import budgets
from icp_jax.planning.workload import describe, resolved, workload
from icp_jax.runs.export import check_free


@dataclasses.dataclass(frozen=True)
class DryRun:
    """The zeros that a run would make, and its estimated cost."""

    model: str
    method: str
    samples: int
    seq_len: int  # tokens per window, or patches per image
    layers: list[dict[str, Any]]  # block, layer, role, inputs, outputs, zeros, sparsity, left
    zeros: int
    size: int
    flops: float  # matrix products
    stream_bytes: int  # both streams
    block_bytes: int  # the largest block's float32 params, on the device
    kind: str = "text"  # kind of model: text or vision

    @property
    def pruned_sparsity(self) -> float | None:
        """The mean sparsity of the layers that are not left as they are; None if all are pruned."""
        rows = [row for row in self.layers if not row["left"]]
        if len(rows) == len(self.layers):
            return None
        return self.zeros / sum(row["inputs"] * row["outputs"] for row in rows)


def dry_run(config: RunConfig) -> DryRun:
    """Compute the zeros of every layer and the cost of a run. Raises InputError.

    Writes nothing; for a hub id, only the config is downloaded.
    """
    config = check(config)
    if config.out:
        check_free(config.out)
    source = describe(config.model)
    full = resolved(config, source)
    work = workload(source, full)
    family, shapes, n = work.family, work.shapes, full.calibration.count
    t = family.positions(full.calibration.seq_len)
    roles = {spec.name: spec.role for spec in family.linears}
    layers: list[dict[str, Any]] = []
    for b, block in enumerate(budgets(family, shapes, config.prune, config.quant)):
        for name, zeros in block.items():
            i, o = shapes[b][name]
            layers.append(
                {
                    "block": b,
                    "layer": name,
                    "role": roles[name],
                    "inputs": i,
                    "outputs": o,
                    "zeros": max(zeros, 0),
                    "sparsity": max(zeros, 0) / (i * o),
                    "left": zeros == LEFT,
                }
            )
    return DryRun(
        model=config.model,
        method=full.prune.method,
        samples=n,
        seq_len=t,
        layers=layers,
        zeros=sum(row["zeros"] for row in layers),
        size=sum(row["inputs"] * row["outputs"] for row in layers),
        flops=sum(cost.flops(family, shapes, cost.load(full, t)).values()),
        stream_bytes=work.both(full.memory.stream_dtype),
        block_bytes=max(sum(4 * i * o for i, o in block.values()) for block in shapes),
        kind=family.kind,
    )
