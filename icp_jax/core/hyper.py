"""The settings of a run: `Recipe` is static, `Hyper` is traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Literal, NamedTuple, SupportsIndex

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from icp_jax.core.choice import Choice
from icp_jax.core.counts import Shapes, Target, counts
from icp_jax.core.masks import parse_pattern
from icp_jax.core.pruners import METHODS, Method, with_solver
from icp_jax.models.spec import Family

Numbers = Array | np.ndarray
EVERY = Choice()


@dataclass(frozen=True)
class Recipe:
    """The static choices of a run. Each recipe compiles its own program."""

    method: str = "icp"  # a key of pruners.METHODS
    pattern: tuple[int, int] | None = None  # n:m, keep n of m; None: unstructured
    block_size: int = 128  # inputs whose mask SparseGPT chooses together
    batch: int = 1  # samples per forward pass
    dtype: str = "float32"  # of the blocks' computations: float32 or bfloat16
    stream_dtype: str = "float32"  # of the hidden states between blocks
    quantize: bool = False  # round the kept weights to a grid of Hyper.bits
    group: int | None = None  # inputs that share a scale; None: one scale per output channel
    symmetric: bool = False  # zero is the middle of the grid
    search: bool = False  # choose the grid's range by its rounding error
    undo: Literal["all", "probe", "never"] = "all"  # a failed compensation, see `compensate`
    remat: bool = False  # recompute attention for the gradient: less memory, more time
    backend: str | None = None  # compile for cpu or gpu; None: JAX's default
    solver: str = "sparsegpt"  # of pruners.SOLVERS, what prunes a block that is compensated

    @property
    def pruner(self) -> Method:
        """The method, with the solver of its blocks."""
        return with_solver(self.method, self.solver)


class Hyper(NamedTuple):
    """The traced numbers of a run. For a sweep, every leaf has a leading axis."""

    counts: Int[Numbers, "*p L linears"]  # weights to prune in each linear; LEFT: not chosen
    rates: Float[Numbers, "*p E"]  # Adam's learning rate in each epoch of the compensation
    damping: Float[Numbers, "*p"]  # added to the diagonal of H, as a share of its mean
    bits: Int[Numbers, "*p"]  # of the grids; used only with Recipe.quantize
    retune: Float[Numbers, "*p S R"]  # Adam's rate in each epoch after each step, see `retune.step`

    @property
    def orders(self) -> int:
        """Orders of the samples that a block needs: one for each epoch of both."""
        return self.rates.shape[-1] + self.retune.shape[-2] * self.retune.shape[-1]


def hyper(
    family: Family,
    shapes: Sequence[Shapes],
    *,
    recipe: Recipe | None = None,
    sparsity: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    rearrange: str | None = None,
    choice: Choice = EVERY,
    lr: float = 5e-4,
    gamma: float = 0.87,
    epochs: int | None = None,
    retune_lr: float = 1e-3,
    retune_gamma: float = 0.87,
    retune_epochs: int = 1,
    retune_steps: int = 3,
    damping: float = 0.01,
    bits: int = 4,
) -> Hyper:
    """The `Hyper` of one run, computed on the host in float64; leaves are NumPy arrays.

    shapes: (inputs, outputs) of each linear of each block, from `Model.shapes(t)`. choice:
    what is pruned. retune_*: for methods that tune a block after each step of its pruning.
    Defaults: sparsity 0.7 or what the pattern implies; alpha, beta and rearrange of the family and
    method; epochs 1, or 0 for methods that re-tune.
    Combine several with `stack`. Raises InputError if the counts are infeasible.
    """
    recipe = recipe or Recipe()
    target = Target(sparsity, recipe.pattern, alpha, beta, rearrange, choice)
    zeros = counts(family, shapes, target, method=recipe.method, group=recipe.group)
    retunes = METHODS[recipe.method].retunes
    epochs = int(not retunes) if epochs is None else epochs
    table, rates = as_table(family, zeros), schedule(lr, gamma, epochs)
    again = stepwise(schedule(retune_lr, retune_gamma, retune_epochs * retunes), retune_steps)
    return point(table, rates, damping, bits, again)


def point(
    table: np.ndarray, rates: np.ndarray, damping: float, bits: int, retune: np.ndarray
) -> Hyper:
    """A `Hyper` from a table of counts, in the dtypes that are traced."""
    return Hyper(table, rates, np.asarray(damping, np.float32), np.asarray(bits, np.int32), retune)


def as_table(family: Family, zeros: Sequence[Mapping[str, int]]) -> np.ndarray:
    """Counts by name to `[L, linears]` int32, in the order of `family.linears`."""
    return np.array([[z[spec.name] for spec in family.linears] for z in zeros], np.int32)


def by_name(family: Family, table: Numbers) -> list[dict[str, int]]:
    """The inverse of `as_table`."""
    names = [spec.name for spec in family.linears]
    return [dict(zip(names, map(int, row), strict=True)) for row in np.asarray(table)]


def schedule(lr: float, gamma: float, epochs: int) -> np.ndarray:
    """`lr * gamma**e` of each epoch, `[E]` float32, rounded once."""
    return np.array([lr * gamma**e for e in range(epochs)], np.float32)


def stepwise(rates: np.ndarray, steps: int) -> np.ndarray:
    """The same rates `[R]` after each step, `[S, R]`; without any rate there is one step."""
    return np.tile(rates, (steps if len(rates) else 1, 1))


def sample_order(
    seed: SupportsIndex | Sequence[SupportsIndex], epochs: int, samples: int
) -> np.ndarray:
    """A permutation of the samples for each epoch, `[E, N]` int32."""
    start = tuple(index(part) for part in (seed if isinstance(seed, Sequence) else (seed,)))
    orders = [np.random.default_rng((*start, e)).permutation(samples) for e in range(epochs)]
    return np.array(orders, np.int32).reshape(epochs, samples)


def block_orders(seed: int, blocks: int, epochs: int, samples: int) -> np.ndarray:
    """The `order` of `icp`, `[L, K, N]` int32; the streaming driver uses the same per seed.

    epochs: K, see `Hyper.orders`.
    """
    return np.stack([sample_order((seed, t), epochs, samples) for t in range(blocks)])


def stack(hypers: Sequence[Hyper]) -> Hyper:
    """Stack the points of a sweep into one `Hyper` whose leaves have a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *hypers)


def parse(pattern: str | None) -> tuple[int, int] | None:
    """Parse `"2:4"` to (2, 4). Raises InputError."""
    return parse_pattern(pattern)
