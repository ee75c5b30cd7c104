"""The stage `torch`: the first blocks of the same model in plain PyTorch, warmed up."""

from __future__ import annotations

from typing import Any

import numpy as np
from prune_job import SHAPES, hf_config, linears

from gpu import model7b
from gpu.stage import Skip

BLOCKS = 2  # the second one is compensated


def run(job: dict[str, Any], keep: Any) -> dict[str, Any]:
    """Seconds by phase of one block, after a run on few samples that warms up."""
    try:
        import torch
    except ImportError:
        raise Skip("torch is not installed") from None
    if not (torch.cuda.is_available() or job["tiny"]):
        raise Skip("this torch sees no CUDA device")
    few = {**job, "samples": min(job["samples"], 4)}
    found: dict[str, Any] = {"torch": torch.__version__, "warm_up": side(few)}
    keep(found)
    found |= side(job)
    counts = {p: BLOCKS - (p == "compensate") for p in found["seconds"]}
    found["block"] = {p: seconds / counts[p] for p, seconds in found["seconds"].items()}
    found["whole"] = {
        "blocks": job["whole"],
        "seconds": job["whole"] * sum(found["block"].values()),
    }
    return found


def side(job: dict[str, Any], count: int = BLOCKS) -> dict[str, Any]:
    """`torch_reference.py`: bfloat16 by autocast, fused attention, the streams on the device.

    No file is written; reading a block is in `dense`.
    """
    import jax
    import torch
    import torch_reference as reference

    from icp_jax.config import PruneConfig
    from icp_jax.models import make_family
    from icp_jax.planning.budgets import budgets
    from icp_jax.streaming.source import FolderSource

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(device)
    folder = model7b.checkpoint(job)
    source = FolderSource(folder)
    family = make_family(hf_config(job))
    zeros = budgets(family, [linears(job)] * job["blocks"], PruneConfig())

    class Blocks:
        """Read when asked for, sent as they are stored, and widened there."""

        def __getitem__(self, t: int) -> Any:
            return {name: wide(leaf) for name, leaf in block(source.block(t)).items()}

    def block(tree: Any) -> Any:
        return reference.from_tree(jax.tree.map(as_bits, tree))

    def wide(leaf: Any) -> Any:
        leaf = leaf.to(device)
        leaf = leaf.view(torch.bfloat16) if leaf.dtype == torch.int16 else leaf
        return leaf.to(torch.float32)

    embed = {
        name: torch.from_numpy(np.array(part["embedding"], np.float32)).to(device)
        for name, part in source.embed().items()
    }
    tokens = np.load(folder.with_name(model7b.TOKENS))[: job["samples"] * job["length"]]
    classes = reference.BLOCKS
    reference.BLOCKS = {name: half(kind, device) for name, kind in classes.items()}
    sparse, dense, seconds = reference.prune_blocks(
        Blocks(),
        embed,
        torch.from_numpy(tokens.reshape(job["samples"], -1)).to(device),
        zeros[:count],
        family=SHAPES[job["shape"]].family,
        hidden=family.hidden_size,
        heads=SHAPES[job["shape"]].heads,
        attention="fused",
        batch=2,
        epochs=1,
        lr=1e-4,
        gamma=0.87,
        damping=0.01,
        width=128,
        seed=0,
    )
    reference.BLOCKS = classes
    error = float((sparse - dense).square().sum() / dense.square().sum())
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"blocks": count, "seconds": seconds, "error": error, "peak_bytes": peak}


def as_bits(leaf: np.ndarray) -> np.ndarray:
    """bfloat16, which torch does not take of NumPy, as int16."""
    return leaf.view(np.int16) if leaf.dtype.name == "bfloat16" else leaf


def half(kind: type, device: str) -> type:
    """A block of `torch_reference` that computes in bfloat16 by autocast."""
    import torch

    def wrapped(method: Any) -> Any:
        def call(*args: Any) -> Any:
            with torch.autocast(device, torch.bfloat16):
                return method(*args)

        return call

    methods = {name: wrapped(getattr(kind, name)) for name in ("__call__", "hidden")}
    return type(kind.__name__, (kind,), methods)
