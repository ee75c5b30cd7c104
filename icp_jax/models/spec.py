"""The description of a family: its modules, its prunable linears, its named rearrangements."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn

from icp_jax.errors import InputError


@dataclass(frozen=True)
class LinearSpec:
    """One prunable linear. name: the submodule; tap: its input; role: its letters in `qkv-f2`."""

    name: str
    tap: str
    role: str


@dataclass(frozen=True)
class Rearrangement:
    """The roles of a block whose sparsity beta lowers (`gives`) and raises (`takes`)."""

    gives: tuple[str, ...]
    takes: tuple[str, ...]

    def __post_init__(self) -> None:
        for side in (self.gives, self.takes):
            if twice := [role for role in dict.fromkeys(side) if side.count(role) > 1]:
                raise InputError(f"a rearrangement lists {', '.join(twice)} twice")
        if both := [role for role in self.gives if role in self.takes]:
            raise InputError(f"a layer cannot both give and take: {', '.join(both)}")
        if not self.gives or not self.takes:
            raise InputError("a rearrangement needs a layer that gives and one that takes")

    def among(self, roles: Container[str]) -> Rearrangement | None:
        """The rearrangement of these roles; None if none of them gives, or none takes."""
        gives, takes = (tuple(r for r in side if r in roles) for side in (self.gives, self.takes))
        return Rearrangement(gives, takes) if gives and takes else None


@dataclass(frozen=True)
class Family:
    """The computation and the layers of a model. Hashable, as a static argument under jit."""

    name: str
    n_blocks: int
    hidden_size: int
    context: int  # longest sequence in tokens; for vision, patches per image
    tied: bool
    embed: nn.Module  # tokens [b, t] -> [b, t, D]; pixels [b, 3, S, S] -> [b, H, W, D]
    block: nn.Module  # [b, t, D] -> [b, t, D], sows 'taps'; see block_at
    head: nn.Module  # ([..., D], tied embedding or None) -> [..., V]
    linears: tuple[LinearSpec, ...]
    rearrangements: tuple[tuple[str, Rearrangement], ...]
    variants: tuple[tuple[int, nn.Module], ...] = ()  # blocks whose module is not `block`
    kind: Literal["text", "vision"] = "text"  # input: tokens or images
    side: int = 0  # for vision: pixels per side of an image
    keys: tuple[int, ...] = ()  # keys per query of each block; unset: causal
    alpha: float | None = None  # the family's defaults for ICP; None: the method's
    beta: float | None = None

    def block_at(self, t: int) -> nn.Module:
        """The module of block t; blocks of equal computation share one object."""
        return dict(self.variants).get(t, self.block)

    def positions(self, seq_len: int | None) -> int:
        """Positions per sample in the streams."""
        return self.context if self.kind == "vision" else seq_len or 0

    def keys_met(self, t: int, positions: int) -> float:
        """Mean number of keys per query of block t."""
        return self.keys[t] if self.keys else positions / 2

    @property
    def default_rearrangement(self) -> str:
        """The name of the default mode: q, k and v give, the block's last linear takes."""
        gives = (("q", "k", "v"), ("qkv",))
        return next(name for name, r in self.rearrangements if r.gives in gives)

    def head_table(self, embed: Mapping[str, Any]) -> Any:
        """The tied embedding table for the head, or None."""
        return embed["tokens"]["embedding"] if self.tied else None

    def readers(self) -> dict[str, list[str]]:
        """The linears that read each tap, in the order of computation."""
        by_tap: dict[str, list[str]] = {}
        for linear in self.linears:
            by_tap.setdefault(linear.tap, []).append(linear.name)
        return by_tap

    def tap_widths(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """The width of each tap, in the order of computation."""
        return {linear.tap: shapes[linear.name][0] for linear in self.linears}


def parse_rearrangement(text: str, roles: Iterable[str]) -> Rearrangement:
    """Parse `"qkv-of1"`: q, k, v give and o, f1 take. Raises ValueError for an unknown role."""
    gives, dash, takes = text.partition("-")
    longest_first = sorted(roles, key=len, reverse=True)
    pattern = "|".join(re.escape(role) for role in longest_first)
    sides = []
    for side in (gives, takes):
        found = re.findall(pattern, side)
        if not dash or not found or "".join(found) != side:
            raise ValueError(f"rearrangement {text!r} is not of the form GIVES-TAKES")
        sides.append(tuple(found))
    try:
        return Rearrangement(*sides)
    except InputError as error:
        raise InputError(f"rearrangement {text!r}: {error}") from None


def rearrangements(roles: Iterable[str], names: str) -> tuple[tuple[str, Rearrangement], ...]:
    """Parse the named modes of a family."""
    roles = tuple(roles)
    return tuple((name, parse_rearrangement(name, roles)) for name in names.split())
