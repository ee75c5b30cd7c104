"""FLOPs of each phase's matrix products in one block, counting multiplications and additions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from icp_jax.core import stats
from icp_jax.core.pruners import Method
from icp_jax.models.spec import Family
from icp_jax.phases import Epochs

Shapes = Mapping[str, tuple[int, int]]  # linear -> (inputs, outputs)


class Products(NamedTuple):
    """The quantities that the matrix products of one block depend on."""

    forward: float  # FLOPs of a forward pass of all samples
    tokens: int  # of all samples
    linears: Sequence[tuple[int, int]]  # (inputs, outputs)
    last: tuple[int, int]  # the last linear in the order of computation
    widths: Sequence[int]  # widths of the taps
    epochs: Epochs
    method: Method

    @property
    def last_by_outputs(self) -> bool:
        """Whether the last linear's energy is computed from its outputs, not from the moments."""
        return stats.outputs_cost_less(self.tokens, self.last[0])


def products(
    family: Family, block: Shapes, keys: float, tokens: int, epochs: Epochs, method: Method
) -> Products:
    """The products of a block with these linears. keys: mean number of keys per query."""
    weights = sum(i * o for i, o in block.values())
    # the linears, then q·k and the attention weights times v
    forward = 2.0 * tokens * (weights + 2 * keys * family.hidden_size)
    last, widths = block[family.linears[-1].name], family.tap_widths(block)
    linears, inputs = tuple(block.values()), tuple(widths.values())
    return Products(forward, tokens, linears, last, inputs, epochs, method)


def none(p: Products) -> Iterator[float]:
    """No matrix products."""
    return iter(())


def forward(p: Products) -> Iterator[float]:
    yield p.forward


def compensate(p: Products) -> Iterator[float]:
    """The backward pass costs two forward passes."""
    yield 3 * p.epochs.compensate * p.forward


def retune(p: Products) -> Iterator[float]:
    yield 3 * p.epochs.retune * p.forward


def global_pass(p: Products) -> Iterator[float]:
    """The dense model once; held-out windows once more than there are epochs; and the steps, in
    which a block is computed twice on the way forward. Without the output layer."""
    epochs = p.epochs.global_pass
    held = 0.1  # of the windows
    yield p.forward * (1 + held * (epochs + 1) + 4 * epochs * (1 - held))


def statistics(p: Products) -> Iterator[float]:
    """Forward pass and second moments, which are symmetric and count half."""
    yield p.epochs.steps * (p.forward + p.tokens * sum(width * width for width in p.widths))
    if not p.last_by_outputs:
        inputs, outputs = p.last
        yield p.epochs.steps * -2.0 * p.tokens * inputs * outputs


def prune(p: Products) -> Iterator[float]:
    yield p.epochs.steps * sum(_prune_once(p))


def _prune_once(p: Products) -> Iterator[float]:
    # half a product with a symmetric matrix, for the errors or the solver's walk
    yield sum(1.0 * i * i * o for i, o in p.linears)
    if not p.last_by_outputs:
        inputs, outputs = p.last
        yield inputs * inputs * outputs
    yield p.method.prune_flops * sum(i * i * o for i, o in p.linears)
    yield p.method.prepare_flops * sum(width**3 for width in p.widths)
