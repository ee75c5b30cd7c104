"""FLOPs of each phase's matrix products in one block.

The functions yield one product after another, in multiplications and additions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from icp_jax.core import stats
from icp_jax.models.spec import Family

Shapes = Mapping[str, tuple[int, int]]  # linear -> (inputs, outputs)


class Products(NamedTuple):
    """What the products of one block hang on."""

    forward: float  # FLOPs of one pass of all samples
    tokens: int  # of all samples
    linears: Sequence[tuple[int, int]]  # (inputs, outputs)
    last: tuple[int, int]  # of them, in the order of the computation
    widths: Sequence[int]  # of the distinct inputs
    epochs: int  # of compensation
    walks: bool  # whether the pruner factors the Hessian

    @property
    def last_by_outputs(self) -> bool:
        """Whether the last linear's energy comes of its outputs, or of the moments."""
        return stats.outputs_cost_less(self.tokens, self.last[0])


def products(
    family: Family, block: Shapes, keys: float, tokens: int, epochs: int, walks: bool
) -> Products:
    """Of a block with these linears. keys: those that a query meets, in the mean."""
    weights = sum(i * o for i, o in block.values())
    # q·k, and weights times v
    forward = 2.0 * tokens * (weights + 2 * keys * family.hidden_size)
    last, widths = block[family.linears[-1].name], family.tap_widths(block)
    linears, inputs = tuple(block.values()), tuple(widths.values())
    return Products(forward, tokens, linears, last, inputs, epochs, walks)


def none(p: Products) -> Iterator[float]:
    """A phase without any."""
    return iter(())


def forward(p: Products) -> Iterator[float]:
    yield p.forward


def compensate(p: Products) -> Iterator[float]:
    """Forward, and twice as much backward."""
    yield 3 * p.epochs * p.forward


def statistics(p: Products) -> Iterator[float]:
    """The second moments count half: they are symmetric."""
    yield p.forward + p.tokens * sum(width * width for width in p.widths)
    if not p.last_by_outputs:
        inputs, outputs = p.last
        yield -2.0 * p.tokens * inputs * outputs


def prune(p: Products) -> Iterator[float]:
    # half of a product with a symmetric matrix: for the errors, or the walk, which knows them
    yield sum(1.0 * i * i * o for i, o in p.linears)
    if not p.last_by_outputs:
        inputs, outputs = p.last
        yield inputs * inputs * outputs
    if p.walks:
        yield 2 / 3 * sum(width**3 for width in p.widths)
