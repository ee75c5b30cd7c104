"""How many weights of every linear go: alpha across blocks, beta within, or an n:m pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from icp_jax import allocate
from icp_jax.config import PruneConfig, QuantConfig
from icp_jax.errors import InputError
from icp_jax.masks import parse_pattern
from icp_jax.models.spec import Family, Rearrangement, parse_rearrangement
from icp_jax.pruners import METHODS

Shapes = Mapping[str, tuple[int, int]]  # linear -> (inputs, outputs)


def budgets(
    family: Family,
    shapes: Sequence[Shapes],
    config: PruneConfig,
    quant: QuantConfig | None = None,
) -> list[dict[str, int]]:
    """Zeros of every linear of every block. Raises InputError before any work is done."""
    pattern = parse_pattern(config.pattern)
    group = 1 if quant is None else quant.group or 1
    for name, (inputs, _) in ((k, v) for block in shapes for k, v in block.items()):
        if inputs % group:
            raise InputError(
                f"quant.group {group}: {name} has {inputs} inputs, no multiple of {group}"
            )
    if pattern is not None:
        n, m = pattern
        for name, (inputs, _) in ((k, v) for block in shapes for k, v in block.items()):
            if inputs % m:
                raise InputError(f"pattern {n}:{m}: {name} has {inputs} inputs, no multiple of {m}")
        return [{k: i * o * (m - n) // m for k, (i, o) in block.items()} for block in shapes]
    alpha, beta = shares(family, config)
    arrangement = rearrangement(family, config.rearrange)
    sizes = [{k: i * o for k, (i, o) in block.items()} for block in shapes]
    zeros = allocate.across_blocks([sum(b.values()) for b in sizes], config.sparsity, alpha)
    roles = {spec.name: spec.role for spec in family.linears}
    counts = []
    for block, count in zip(sizes, zeros, strict=True):
        by_role = allocate.within_block(
            {roles[k]: size for k, size in block.items()}, count, beta, arrangement
        )
        counts.append({k: by_role[roles[k]] for k in block})
    return counts


def shares(family: Family, config: PruneConfig) -> tuple[float, float]:
    """(alpha, beta): as set, or the family's own for a method that compensates, or the method's."""
    method, given = METHODS[config.method], (config.alpha, config.beta)
    own = (family.alpha, family.beta) if method.compensates else (None, None)
    alpha, beta = (
        next(v for v in found if v is not None)
        for found in zip(given, own, (method.alpha, method.beta), strict=True)
    )
    return alpha, beta


def rearrangement(family: Family, name: str | None) -> Rearrangement:
    """A named mode of the family, the default one, or any GIVES-TAKES of its roles."""
    named = dict(family.rearrangements)
    try:
        return named.get(name or family.default_rearrangement) or parse_rearrangement(
            name or "", [spec.role for spec in family.linears]
        )
    except ValueError as error:
        raise InputError(f"{error}; named ones: {', '.join(named)}") from None
