"""The shapes of a run's arrays, from a checkpoint or only its `config.json`."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from converters import table_for
from converters.files import holds_weights
from converters.rules import Placed, insert
from icp_jax.config import RunConfig, filled
from icp_jax.core.counts import shares
from icp_jax.core.kl import weights
from icp_jax.data import hub, inputs
from icp_jax.data.hub import resolve
from icp_jax.errors import InputError
from icp_jax.models import Family, make_family
from icp_jax.streaming import mesh, passes
from icp_jax.streaming.distill import check_text
from icp_jax.streaming.model_config import read_config
from icp_jax.streaming.source import FolderSource, part_of

Params = dict[str, Any]


class Described(Protocol):
    """A model with the names, shapes and dtypes of its tensors."""

    config: dict[str, Any]
    family: Family
    folder: Path
    placed: list[Placed]

    def dtype(self, name: str) -> np.dtype: ...


class ConfigOnly:
    """A model described by its `config.json` alone. Raises InputError."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, read_config(folder)
        self.family = make_family(self.config)
        placed = table_for(self.config["model_type"]).place(self.config)
        self.placed = [r for r in placed if not (self.family.tied and r.name == "lm_head.weight")]
        stored = self.config.get("dtype") or self.config.get("torch_dtype") or "float32"
        try:
            self._dtype = np.dtype(jnp.dtype(str(stored).removeprefix("torch.")))
        except TypeError:
            raise InputError(f"config.json: unknown dtype {str(stored)[:60]!r}") from None

    def dtype(self, name: str) -> np.dtype:
        """The config's dtype, which holds for all tensors."""
        return self._dtype


def describe(model: str) -> Described:
    """Describe a checkpoint folder, a config-only folder, a `config.json` or a hub id.

    For a hub id, only the config is downloaded. Raises InputError.
    """
    path = Path(model).expanduser()
    if path.name == "config.json" and path.is_file():
        return ConfigOnly(path.parent)
    files = [p for p in path.iterdir() if p.is_file()] if path.is_dir() else []
    there = [p.name for p in files if p.stat().st_size]
    if "config.json" in there and not any(map(holds_weights, there)):
        return ConfigOnly(path)
    if path.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        with closing(FolderSource(resolve(model))) as source:
            return source  # closed: only names and shapes are used from here on
    return ConfigOnly(hub.config(model))


def resolved(config: RunConfig, source: inputs.Described) -> RunConfig:
    """Fill in all unset fields for this model. Raises InputError."""
    config = filled(config)
    if config.global_pass.epochs:
        check_text(source.family)
    p = config.prune
    own = p.structured  # n:m patterns are uniform
    alpha, beta = (1.0, 0.0) if own else shares(source.family, p.method, p.alpha, p.beta)
    rearrange = p.rearrange or source.family.default_rearrangement
    return dataclasses.replace(
        config,
        dtype=passes.compute_dtype(config.dtype),
        devices=mesh.choose(config.devices).count,
        prune=dataclasses.replace(p, alpha=alpha, beta=beta, rearrange=rearrange),
        calibration=inputs.resolved(config.calibration, source),
    )


class Workload(NamedTuple):
    """A run with shapes (jax.ShapeDtypeStruct) in place of arrays."""

    family: Family
    blocks: list[Params]  # in the stored dtypes
    embed: Params
    head: Any  # the params of the output layer, with a tied table
    others: int  # bytes of the checkpoint's other tensors
    sample: jax.ShapeDtypeStruct  # `[1, T]` tokens, or one image
    config: RunConfig  # resolved

    @property
    def shapes(self) -> list[dict[str, tuple[int, int]]]:
        """(inputs, outputs) of every linear of every block."""
        return [
            {s.name: block[s.name]["kernel"].shape for s in self.family.linears}
            for block in self.blocks
        ]

    @property
    def positions(self) -> int:
        """Positions per sample in the streams."""
        return int(np.prod(self.hidden().shape[1:-1]))

    def hidden(self, dtype: str = "float32") -> jax.ShapeDtypeStruct:
        """One sample of a stream, `[1, T, D]` or `[1, H, W, D]`."""
        return passes.hidden(self.family, self.embed, self.sample, dtype)

    def both(self, dtype: str) -> int:
        """Bytes of both streams."""
        return 2 * self.config.calibration.count * size(self.hidden(dtype))


def workload(source: Described, config: RunConfig) -> Workload:
    """The workload of a resolved config."""
    family, others = source.family, 0
    parts: dict[tuple[str, ...], Params] = {}
    for rule in source.placed:
        leaf = rule.to_tree(np.broadcast_to(np.float32(0), rule.shape))
        shape, part = jax.ShapeDtypeStruct(leaf.shape, source.dtype(rule.name)), part_of(rule)
        insert(parts.setdefault(part, {}), rule.path[len(part) :], shape)
        if part[0] not in ("blocks", "embed"):
            others += size(shape)
    if family.kind == "vision":
        sample = jax.ShapeDtypeStruct((1, 3, family.side, family.side), jnp.float32)
    else:
        sample = jax.ShapeDtypeStruct((1, config.calibration.seq_len or 0), jnp.int32)
    blocks = [parts["blocks", str(t)] for t in range(family.n_blocks)]
    embed, head = (parts.get((name,), {}) for name in ("embed", "head"))
    of_head = weights(family, embed, head)
    return Workload(family, blocks, embed, of_head, others, sample, config)


def size(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
