"""A model in memory: a JAX pytree whose leaves are its params."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from converters.layout import Layout
from icp_jax.backend.products import full_precision
from icp_jax.models import Family, make_family

Params = dict[str, Any]


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class Model:
    """A Flax param tree, with the config and file layout needed to save it again.

    params: {'embed': ..., 'blocks': {'0': ...}, 'head': ...}; every kernel is `[in, out]`.
    A model is a pytree whose leaves are the params; the rest is static. `jax.jit`, `jax.grad`,
    `jax.tree.map`, Optax and Orbax accept it wherever they accept params, and `model(tokens)` is
    a pure function of both.
    """

    config: dict[str, Any] = field(repr=False)
    params: Params = field(repr=False)
    layout: Layout = field(repr=False)  # names, dtypes and shards of the source
    folder: Path  # the source, from which the tokenizer and other files are copied

    def __call__(self, tokens: Any) -> jax.Array:
        """Logits `[b, t, V]` float32 for tokens `[b, t]`; see `logits`."""
        return self.logits(tokens)

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Params]], Static]:
        static = Static(self.config, self.layout, self.folder)
        return [(jax.tree_util.GetAttrKey("params"), self.params)], static

    @classmethod
    def tree_unflatten(cls, static: Static, children: list[Params]) -> Model:
        return cls(static.config, children[0], static.layout, static.folder)

    @property
    def family(self) -> Family:
        """The embed, block and head modules, and the list of linears."""
        return make_family(self.config)

    def embed(self) -> Params:
        """The params of the embedding."""
        return self.params["embed"]

    def head(self) -> Params:
        """The params of the final norm and the output layer."""
        return self.params["head"]

    def block(self, t: int) -> Params:
        """The params of block t, as NumPy arrays."""
        return jax.tree.map(np.asarray, self.params["blocks"][str(t)])

    def forget(self) -> None:
        """Do nothing: the model stays in memory."""

    def tree(self) -> Params:
        """The whole param tree."""
        return self.params

    def shapes(self, t: int) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each prunable linear of block t."""
        block = self.params["blocks"][str(t)]
        return {spec.name: block[spec.name]["kernel"].shape for spec in self.family.linears}

    def logits(self, tokens: Any, params: Params | None = None) -> jax.Array:
        """Logits `[b, t, V]` for tokens `[b, t]`, as a pure function of `params`.

        For a vision family, the image embedding `[b, g, g, C]` of pixels `[b, 3, S, S]`.
        """
        family, params = self.family, self.params if params is None else params
        with full_precision("float32"):  # activations are float32, whatever the stored dtype
            x = family.embed.apply({"params": params["embed"]}, tokens)
            for t in range(family.n_blocks):
                x = family.block_at(t).apply({"params": params["blocks"][str(t)]}, x)
            table = family.head_table(params["embed"])
            logits = family.head.apply({"params": params["head"]}, x, table)
        assert isinstance(logits, jax.Array)  # apply returns a pair only with `mutable`
        return logits


@dataclass(frozen=True)
class Static:
    """The static part of a model. Models of one folder are equal and share compiled programs."""

    config: dict[str, Any]
    layout: Layout
    folder: Path

    def __hash__(self) -> int:
        return hash((json.dumps(self.config, sort_keys=True, default=str), self.folder))


class TreeSink:
    """Collect pruned blocks in a new tree, which shares all else with the old one."""

    def __init__(self, params: Mapping[str, Any]):
        self.params: Params = {**params, "blocks": dict(params["blocks"])}

    def write(self, t: int, params: Params, grids: Any = None) -> None:
        self.params["blocks"][str(t)] = params
