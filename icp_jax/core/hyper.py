"""What a run is told: `Recipe`, which is compiled in, and `Hyper`, which is traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Literal, NamedTuple, SupportsIndex

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from icp_jax.core.counts import Shapes, Target, counts
from icp_jax.core.masks import parse_pattern
from icp_jax.models.spec import Family

Numbers = Array | np.ndarray


@dataclass(frozen=True)
class Recipe:
    """The static choices of a run. Another recipe compiles another program."""

    method: str = "icp"  # a key of pruners.METHODS
    pattern: tuple[int, int] | None = None  # n:m, keep n of m; None: unstructured
    block_size: int = 128  # inputs whose mask SparseGPT chooses together
    batch: int = 1  # samples a forward pass takes at once
    dtype: str = "float32"  # what blocks compute in: float32 or bfloat16
    stream_dtype: str = "float32"  # what hidden states are kept in between blocks
    quantize: bool = False  # round the kept weights to a grid of Hyper.bits
    group: int | None = None  # inputs that share a scale; None: one scale an output channel
    symmetric: bool = False  # zero is the middle of the grid
    search: bool = False  # choose the grid's range by its rounding error
    undo: Literal["all", "probe", "never"] = "all"  # a compensation that failed, see compensate
    remat: bool = False  # recompute attention for the gradient: less memory, more time
    backend: str | None = None  # whose forms of products to take: cpu, gpu; None: JAX's default


class Hyper(NamedTuple):
    """The traced numbers of a run. A leading axis on every leaf makes a sweep."""

    counts: Int[Numbers, "*p L linears"]  # weights to zero in every linear
    rates: Float[Numbers, "*p E"]  # Adam's rate in every epoch
    damping: Float[Numbers, "*p"]  # added to the diagonal of H, as a share of its mean
    bits: Int[Numbers, "*p"]  # of the grids; not used unless Recipe.quantize


def hyper(
    family: Family,
    shapes: Sequence[Shapes],
    *,
    recipe: Recipe | None = None,
    sparsity: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    rearrange: str | None = None,
    lr: float = 1e-4,
    gamma: float = 0.87,
    epochs: int = 1,
    damping: float = 0.01,
    bits: int = 4,
) -> Hyper:
    """The `Hyper` of one run, made on the host in float64; leaves are NumPy arrays.

    shapes: (inputs, outputs) of every linear of every block, as `Model.shapes(t)` gives them.
    Unset sparsity is 0.7, or the pattern's; unset alpha, beta and rearrange are the method's and
    the family's own. Stack several with `stack`. Raises InputError for counts that cannot be met.
    """
    recipe = recipe or Recipe()
    target = Target(sparsity, recipe.pattern, alpha, beta, rearrange)
    zeros = counts(family, shapes, target, method=recipe.method, group=recipe.group)
    return point(as_table(family, zeros), schedule(lr, gamma, epochs), damping, bits)


def point(table: np.ndarray, rates: np.ndarray, damping: float, bits: int) -> Hyper:
    """One run's numbers in the dtypes they are traced in."""
    return Hyper(table, rates, np.asarray(damping, np.float32), np.asarray(bits, np.int32))


def as_table(family: Family, zeros: Sequence[Mapping[str, int]]) -> np.ndarray:
    """Counts by name to `[L, linears]` int32, in the order of `family.linears`."""
    return np.array([[z[spec.name] for spec in family.linears] for z in zeros], np.int32)


def by_name(family: Family, table: Numbers) -> list[dict[str, int]]:
    """The inverse of `as_table`."""
    names = [spec.name for spec in family.linears]
    return [dict(zip(names, map(int, row), strict=True)) for row in np.asarray(table)]


def schedule(lr: float, gamma: float, epochs: int) -> np.ndarray:
    """`lr * gamma**e` of every epoch, `[E]` float32, rounded once."""
    return np.array([lr * gamma**e for e in range(epochs)], np.float32)


def sample_order(
    seed: SupportsIndex | Sequence[SupportsIndex], epochs: int, samples: int
) -> np.ndarray:
    """A permutation of the samples for every epoch, `[E, N]` int32."""
    start = tuple(index(part) for part in (seed if isinstance(seed, Sequence) else (seed,)))
    found = [np.random.default_rng((*start, e)).permutation(samples) for e in range(epochs)]
    return np.array(found, np.int32).reshape(epochs, samples)


def block_orders(seed: int, blocks: int, epochs: int, samples: int) -> np.ndarray:
    """The `order` of `icp`, `[L, E, N]` int32: what the streaming driver uses for this seed."""
    return np.stack([sample_order((seed, t), epochs, samples) for t in range(blocks)])


def stack(hypers: Sequence[Hyper]) -> Hyper:
    """Several points of a sweep as one `Hyper` whose leaves have a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *hypers)


def parse(pattern: str | None) -> tuple[int, int] | None:
    """`"2:4"` to (2, 4). Raises InputError."""
    return parse_pattern(pattern)
