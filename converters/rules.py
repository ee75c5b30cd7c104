"""A family's table of rules: torch name and shape <-> path in the Flax tree.

A rule maps one tensor. Linear weights are `[out, in]` in torch and 2-D kernels `[in, out]` in
Flax, so the only transform is a transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

Path = tuple[str, ...]
Dims = Mapping[str, int]


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type, for a one-line message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class ConversionError(ValueError):
    """A checkpoint does not match its table. The message is one line and names the tensor."""


@dataclass(frozen=True)
class Rule:
    """One tensor: torch name (with `{i}` for the block), tree path, torch shape in letters."""

    torch: str
    tree: str  # slash-separated, `{i}` for the block
    shape: tuple[str, ...]  # in torch's order; letters are looked up in the table's dims
    transpose: bool = False
    when: Callable[[Mapping[str, Any]], bool] = lambda config: True


@dataclass(frozen=True)
class Placed:
    """A rule resolved for one config: the actual name, path and shape."""

    name: str
    path: Path
    shape: tuple[int, ...]
    transpose: bool

    def to_tree(self, tensor: np.ndarray) -> np.ndarray:
        return tensor.T if self.transpose else tensor

    def to_torch(self, leaf: np.ndarray) -> np.ndarray:
        """The leaf in torch's order, contiguous, since safetensors writes the buffer."""
        return np.ascontiguousarray(leaf.T if self.transpose else leaf)


@dataclass(frozen=True)
class Table:
    """A family's rules. dims: config -> sizes of the letters. prefixes: of names in checkpoints."""

    family: str
    rules: tuple[Rule, ...]
    dims: Callable[[Mapping[str, Any]], Dims]
    n_blocks: Callable[[Mapping[str, Any]], int]
    prefixes: tuple[str, ...] = ("",)
    ignored: tuple[str, ...] = field(default=())  # names of buffers, in the form of Rule.torch
    tied_default: bool = True  # the default of tie_word_embeddings

    def place(self, config: Mapping[str, Any], names: Iterable[str] | None = None) -> list[Placed]:
        """All tensors of a model with this config.

        names: the checkpoint's tensor names, which determine the prefix. An unknown, missing or
        duplicate name raises ConversionError. None: use the first prefix.
        """
        listed = None if names is None else list(names)
        prefix = self._prefix(listed)
        if listed is None:
            return list(self._rules(config, prefix, None).values())
        placed = self._rules(config, prefix, listed)
        self._refuse(placed, listed, self._buffers(config, prefix))
        return list(placed.values())

    def compare(
        self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[list[Placed], dict[str, list[str]]]:
        """(tensors of a model with this config, how `shapes` differ from them).

        The differences are lists of names under `missing`, `unexpected` and `misshapen`.
        """
        names = list(shapes)
        prefix = self._nearest_prefix(config, names)
        placed = self._rules(config, prefix, names)
        known = {*placed, *self._buffers(config, prefix)}
        return list(placed.values()), {
            "missing": [name for name in placed if name not in shapes],
            "unexpected": [name for name in names if name not in known],
            "misshapen": [n for n, p in placed.items() if tuple(shapes.get(n, p.shape)) != p.shape],
        }

    def _rules(
        self, config: Mapping[str, Any], prefix: Any, names: Sequence[str] | None
    ) -> dict[str, Placed]:
        """The tensors by name. With `names`, optional tensors only if they are listed."""
        dims = self.dims(config)
        placed: dict[str, Placed] = {}
        for rule in self.rules:
            if not rule.when(config):
                continue
            for i, name in enumerate(self._names(rule.torch, prefix, config)):
                shape = tuple(dims[d] for d in rule.shape)
                path = tuple(rule.tree.format(i=i).split("/"))
                placed[name] = Placed(name, path, shape, rule.transpose)
        tied = bool(config.get("tie_word_embeddings", self.tied_default))
        if names is not None and tied and "lm_head.weight" not in names:
            placed.pop("lm_head.weight", None)  # tied to the embedding, and not in the checkpoint
        return placed

    def _names(self, pattern: str, prefix: Any, config: Mapping[str, Any]) -> list[str]:
        count = self.n_blocks(config) if "{i}" in pattern else 1
        return [pattern.format(p=prefix, i=i) for i in range(count)]

    def _buffers(self, config: Mapping[str, Any], prefix: Any) -> set[str]:
        return {name for b in self.ignored for name in self._names(b, prefix, config)}

    def _spellings(self) -> dict[str, Any]:
        """Name of a tensor that identifies each prefix -> the `prefix` argument of `_rules`."""
        return {self.rules[0].torch.format(p=prefix, i=0): prefix for prefix in self.prefixes}

    def _prefix(self, names: list[str] | None) -> Any:
        spellings = self._spellings()
        for anchor, prefix in spellings.items():
            if names is None or anchor in names:
                return prefix
        article = "an" if self.family[0] in "aeiou" else "a"
        raise ConversionError(
            f"missing tensor {next(iter(spellings))!r}: "
            f"this is not {article} {self.family} checkpoint, or a shard is missing"
        )

    def _nearest_prefix(self, config: Mapping[str, Any], names: list[str]) -> Any:
        """The prefix that matches most of the names."""
        return max(
            self._spellings().values(),
            key=lambda prefix: len(self._rules(config, prefix, names).keys() & set(names)),
        )

    def _refuse(self, placed: dict[str, Placed], names: list[str], buffers: set[str]) -> None:
        """Raise ConversionError for the first duplicate, unknown or missing name."""
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise ConversionError(f"duplicate tensor {name!r}")
            seen.add(name)
            if name not in placed and name not in buffers:
                near = get_close_matches(name, placed, n=1)
                hint = f" (nearest known: {near[0]!r})" if near else ""
                raise ConversionError(f"unknown tensor {name!r} for {self.family}{hint}")
        for name in placed:
            if name not in seen:
                raise ConversionError(f"missing tensor {name!r}")


def check_shape(rule: Placed, shape: tuple[int, ...]) -> None:
    """Raise ConversionError, naming the tensor, if its shape differs from the config's."""
    if tuple(shape) != rule.shape:
        raise ConversionError(
            f"tensor {rule.name!r} has shape {list(shape)}, the config says {list(rule.shape)}"
        )


def insert(tree: dict[str, Any], path: Path, leaf: Any) -> None:
    """Insert a leaf into a nested dict. Raises ConversionError if the path is occupied."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConversionError(f"a tensor lies on the tree path {'/'.join(path)!r}")
    if path[-1] in tree:
        raise ConversionError(f"two tensors for the tree path {'/'.join(path)!r}")
    tree[path[-1]] = leaf


def lookup(tree: Mapping[str, Any], path: Path) -> Any:
    """The leaf at a path. Raises ConversionError if there is none."""
    node: Any = tree
    for key in path:
        if not isinstance(node, Mapping) or key not in node:
            raise ConversionError(f"missing leaf {'/'.join(path)!r} in the param tree")
        node = node[key]
    return node
