"""Number of weights to prune in each linear: alpha across blocks, beta within, or an n:m pattern.

Computed on the host in Python integers and float64: totals are exact, and an infeasible alpha or
beta is refused before any work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from icp_jax.core.allocate import across_blocks, within_block
from icp_jax.core.choice import LEFT, Choice, chosen
from icp_jax.core.pruners import METHODS
from icp_jax.errors import Infeasible, InputError
from icp_jax.models.spec import Family, Rearrangement, parse_rearrangement

Shapes = Mapping[str, tuple[int, int]]  # linear -> (inputs, outputs)


class Target(NamedTuple):
    """How many weights to prune, and where: a sparsity with its allocation, or a pattern alone."""

    sparsity: float | None = None  # None: 0.7, or what the pattern implies
    pattern: tuple[int, int] | None = None  # n:m, keep n of m
    alpha: float | None = None  # None, here and in beta: see `shares`
    beta: float | None = None
    rearrange: str | None = None  # None: the family's default
    choice: Choice = Choice()


def counts(
    family: Family,
    shapes: Sequence[Shapes],
    target: Target,
    *,
    method: str = "icp",
    group: int | None = None,
) -> list[dict[str, int]]:
    """Weights to prune in each linear of each block, by name; LEFT where it is left as it is.

    The sparsity is the mean over the linears that are chosen. Those with a sparsity of their own
    count in it, and the others make up for them. group: inputs that share a scale; it must divide
    the inputs of every chosen linear. Raises InputError.
    """
    own = chosen(target.choice, shapes)
    picked = [{k: block[k] for k in mine} for block, mine in zip(shapes, own, strict=True)]
    for name, (inputs, _) in ((k, v) for block in picked for k, v in block.items()):
        if inputs % (group or 1):
            raise InputError(
                f"quant.group {group}: {name} has {inputs} inputs, not a multiple of {group}; "
                "choose a group that divides them"
            )
    if target.pattern is not None:
        if target.sparsity is not None:
            raise InputError("a pattern fixes the sparsity: set pattern or sparsity, not both")
        if target.choice.sparsity_of:
            raise InputError("a pattern fixes every layer's sparsity: leave sparsity_of out")
        found = [_by_pattern(block, *target.pattern) for block in picked]
    else:
        found = _by_sparsity(family, picked, own, target, method)
    return [{k: f.get(k, LEFT) for k in block} for block, f in zip(shapes, found, strict=True)]


def _by_sparsity(
    family: Family,
    picked: Sequence[Shapes],
    own: Sequence[Mapping[str, float | None]],
    target: Target,
    method: str,
) -> list[dict[str, int]]:
    """Counts of the chosen linears: those with their own sparsity first, then the others."""
    alpha, beta = shares(family, method, target.alpha, target.beta)
    arrangement = rearrangement(family, target.rearrange)
    roles = {spec.name: spec.role for spec in family.linears}
    found: list[dict[str, int]] = [{} for _ in picked]
    others: list[dict[str, int]] = [{} for _ in picked]  # role -> size
    for t, block in enumerate(picked):
        for name, (inputs, outputs) in block.items():
            sparsity, size = own[t][name], inputs * outputs
            if sparsity is None:
                others[t][roles[name]] = size
            else:
                found[t][name] = round(sparsity * size)
    rate = _rate_of_others(target.sparsity, picked, found, others)
    some = [t for t, sizes in enumerate(others) if sizes]  # alpha is of the last of these
    zeros = across_blocks([sum(others[t].values()) for t in some], rate, alpha) if some else []
    for t, count in zip(some, zeros, strict=True):
        by_role = within_block(others[t], count, beta, arrangement.among(others[t]))
        found[t] |= {k: by_role[roles[k]] for k in picked[t] if k not in found[t]}
    return found


def _rate_of_others(
    asked: float | None,
    picked: Sequence[Shapes],
    fixed: Sequence[Mapping[str, int]],
    others: Sequence[Mapping[str, int]],
) -> float:
    """The mean sparsity of the linears without their own. Raises Infeasible."""
    sparsity = 0.7 if asked is None else asked
    zeros, free = (sum(sum(b.values()) for b in blocks) for blocks in (fixed, others))
    if not any(fixed):  # not computed from counts, so that the totals round as they always did
        return sparsity
    size = sum(i * o for block in picked for i, o in block.values())
    left = round(sparsity * size) - zeros
    if free and 0 <= left < free:
        return left / free
    if not free and (asked is None or not left):
        return 0.0
    low, high = zeros / size, (zeros + free) / size
    feasible = f"between {low:.4f} and {high:.4f}" if free else f"{low:.6f}, or leave it out"
    raise Infeasible(
        f"sparsity {sparsity:g} cannot be reached beside the layers' own sparsities: "
        f"set it to {feasible}"
    )


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
