"""Number of weights to prune in each linear: alpha across blocks, beta within, or an n:m pattern.

Computed on the host in Python integers and float64: totals are exact, and an infeasible alpha or
beta is refused before any work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from icp_jax.core.allocate import across_blocks, within_block
from icp_jax.core.pruners import METHODS
from icp_jax.errors import InputError
from icp_jax.models.spec import Family, Rearrangement, parse_rearrangement

Shapes = Mapping[str, tuple[int, int]]  # linear -> (inputs, outputs)


class Target(NamedTuple):
    """How many weights to prune, and where: a sparsity with its allocation, or a pattern alone."""

    sparsity: float | None = None  # None: 0.7, or what the pattern implies
    pattern: tuple[int, int] | None = None  # n:m, keep n of m
    alpha: float | None = None  # None, here and in beta: see `shares`
    beta: float | None = None
    rearrange: str | None = None  # None: the family's default


def counts(
    family: Family,
    shapes: Sequence[Shapes],
    target: Target,
    *,
    method: str = "icp",
    group: int | None = None,
) -> list[dict[str, int]]:
    """Weights to prune in each linear of each block, by name. Raises InputError.

    group: inputs that share a scale; it must divide the inputs of every linear.
    """
    for name, (inputs, _) in ((k, v) for block in shapes for k, v in block.items()):
        if inputs % (group or 1):
            raise InputError(
                f"quant.group {group}: {name} has {inputs} inputs, not a multiple of {group}; "
                "choose a group that divides them"
            )
    if target.pattern is not None:
        if target.sparsity is not None:
            raise InputError("a pattern fixes the sparsity: set pattern or sparsity, not both")
        return [_by_pattern(block, *target.pattern) for block in shapes]
    alpha, beta = shares(family, method, target.alpha, target.beta)
    sparsity = 0.7 if target.sparsity is None else target.sparsity
    arrangement = rearrangement(family, target.rearrange)
    roles = {spec.name: spec.role for spec in family.linears}
    sizes = [{roles[k]: i * o for k, (i, o) in block.items()} for block in shapes]
    zeros = across_blocks([sum(b.values()) for b in sizes], sparsity, alpha)
    by_role = [within_block(b, z, beta, arrangement) for b, z in zip(sizes, zeros, strict=True)]
    return [{k: by[roles[k]] for k in block} for block, by in zip(shapes, by_role, strict=True)]


def _by_pattern(block: Shapes, n: int, m: int) -> dict[str, int]:
    for name, (inputs, _) in block.items():
        if inputs % m:
            raise InputError(
                f"pattern {n}:{m}: {name} has {inputs} inputs, not a multiple of {m}; "
                "choose an m that divides them"
            )
    return {k: i * o * (m - n) // m for k, (i, o) in block.items()}


def shares(
    family: Family, method: str, alpha: float | None = None, beta: float | None = None
) -> tuple[float, float]:
    """(alpha, beta) as given; unset ones take a default.

    The default is the family's if the method compensates, else the method's. Raises InputError
    for an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is not one of {', '.join(METHODS)}")
    of = METHODS[method]
    own = (family.alpha, family.beta) if of.compensates else (None, None)
    candidates = zip((alpha, beta), own, (of.alpha, of.beta), strict=True)
    a, b = (next(v for v in choices if v is not None) for choices in candidates)
    return a, b


def rearrangement(family: Family, name: str | None) -> Rearrangement:
    """The family's rearrangement of this name, any GIVES-TAKES of its roles, or its default."""
    named = dict(family.rearrangements)
    try:
        return named.get(name or family.default_rearrangement) or parse_rearrangement(
            name or "", [spec.role for spec in family.linears]
        )
    except ValueError as error:
        raise InputError(f"{error}; known names: {', '.join(named)}") from None
