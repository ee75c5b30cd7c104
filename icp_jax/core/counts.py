"""How many weights every linear loses: alpha across blocks, beta within, or an n:m pattern.

Made on the host in Python integers and float64, so that every total is exact and an infeasible
pair of alpha and beta is refused before any work.
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
    """How many weights go, and where: a sparsity with its allocation, or a pattern alone."""

    sparsity: float | None = None  # None: 0.7, or the pattern's
    pattern: tuple[int, int] | None = None  # n:m, keep n of m
    alpha: float | None = None  # None, here and in beta: see `shares`
    beta: float | None = None
    rearrange: str | None = None  # None: the family's own


def counts(
    family: Family,
    shapes: Sequence[Shapes],
    target: Target,
    *,
    method: str = "icp",
    group: int | None = None,
) -> list[dict[str, int]]:
    """Weights to zero in every linear of every block, by name. Raises InputError.

    group: inputs that share a scale, which must divide those of every linear.
    """
    for name, (inputs, _) in ((k, v) for block in shapes for k, v in block.items()):
        if inputs % (group or 1):
            raise InputError(
                f"quant.group {group}: {name} has {inputs} inputs, no multiple of {group}"
            )
    if target.pattern is not None:
        if target.sparsity is not None:
            raise InputError("a pattern says what the sparsity is: give one of the two")
        return [_by_pattern(block, *target.pattern) for block in shapes]
    alpha, beta = shares(family, method, target.alpha, target.beta)
    sparsity = 0.7 if target.sparsity is None else target.sparsity
    arrangement = rearrangement(family, target.rearrange)
    roles = {spec.name: spec.role for spec in family.linears}
    sizes = [{roles[k]: i * o for k, (i, o) in block.items()} for block in shapes]
    zeros = across_blocks([sum(b.values()) for b in sizes], sparsity, alpha)
    found = [within_block(b, z, beta, arrangement) for b, z in zip(sizes, zeros, strict=True)]
    return [{k: by[roles[k]] for k in block} for block, by in zip(shapes, found, strict=True)]


def _by_pattern(block: Shapes, n: int, m: int) -> dict[str, int]:
    for name, (inputs, _) in block.items():
        if inputs % m:
            raise InputError(f"pattern {n}:{m}: {name} has {inputs} inputs, no multiple of {m}")
    return {k: i * o * (m - n) // m for k, (i, o) in block.items()}


def shares(
    family: Family, method: str, alpha: float | None = None, beta: float | None = None
) -> tuple[float, float]:
    """(alpha, beta): as given, else the family's for a method that compensates, else the method's.

    Raises InputError for an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is not one of {', '.join(METHODS)}")
    of = METHODS[method]
    own = (family.alpha, family.beta) if of.compensates else (None, None)
    found = zip((alpha, beta), own, (of.alpha, of.beta), strict=True)
    a, b = (next(v for v in choices if v is not None) for choices in found)
    return a, b


def rearrangement(family: Family, name: str | None) -> Rearrangement:
    """A named mode of the family, its default one, or any GIVES-TAKES of its roles."""
    named = dict(family.rearrangements)
    try:
        return named.get(name or family.default_rearrangement) or parse_rearrangement(
            name or "", [spec.role for spec in family.linears]
        )
    except ValueError as error:
        raise InputError(f"{error}; named ones: {', '.join(named)}") from None
