"""Passes of a batch of samples through one block: forward, and the statistics for the pruners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.backend.products import full_precision
from icp_jax.core import stats
from icp_jax.core.token_errors import Beside, beside
from icp_jax.models.spec import Family

Params = dict[str, Any]
Shapes = Mapping[str, tuple[int, int]]  # linear -> (inputs, outputs)


@dataclass(frozen=True)
class Apply:
    """A module as a pure function of (params, x). Computes in `dtype`, returns float32."""

    module: Any
    dtype: str

    def rematerialised(self) -> Apply:
        """The same function; its gradient recomputes attention instead of storing it."""
        if not hasattr(self.module, "remat"):  # SAM's attention always recomputes
            return self
        return Apply(self.module.clone(remat=True), self.dtype)

    def __call__(self, params: Params, x: AnyArray) -> jax.Array:
        with full_precision(self.dtype):
            return self.module.apply({"params": params}, x.astype(self.dtype)).astype(jnp.float32)

    def watched(
        self, params: Params, x: AnyArray
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """(inputs of the linears by tap, ‖Wᵀx‖² per sample by linear)."""
        kinds = ["taps", "energies"]
        with full_precision(self.dtype):
            _, found = self.module.apply({"params": params}, x.astype(self.dtype), mutable=kinds)
        taps = {name: values[0] for name, values in found["taps"].items()}
        return taps, {name: sown["outputs"][0] for name, sown in found["energies"].items()}


class Statistics(NamedTuple):
    """Calibration statistics of a block's linears, for the pruners."""

    sums: dict[str, stats.Sums]  # of the inputs, by tap
    energies: dict[str, jax.Array]  # ‖Wᵀx‖² over all tokens, by linear


def embed(module: Any, dtype: str, params: Params, tokens: AnyArray) -> jax.Array:
    """Embed tokens or pixels: the first hidden states, in the stream's dtype."""
    with full_precision("float32"):
        return module.apply({"params": params}, tokens).astype(dtype)


def no_statistics(family: Family, shapes: Shapes, tokens: int) -> Statistics:
    """Empty statistics for a total of `tokens`.

    The last linear would run only for its energy. That energy is left out if computing it from
    the moments is cheaper.
    """
    sums = {tap: stats.zeros(width) for tap, width in family.tap_widths(shapes).items()}
    *counted, last = (spec.name for spec in family.linears)
    if stats.outputs_cost_less(tokens, shapes[last][0]):
        counted.append(last)
    return Statistics(sums, {name: jnp.zeros((), jnp.float32) for name in counted})


def collect(
    apply: Apply,
    params: Params,
    x: Float[AnyArray, "b *s"],
    seen: Statistics,
    valid: Int[AnyArray, ""],
) -> Statistics:
    """Add the first `valid` samples of a batch to the statistics of every linear."""
    real = jnp.arange(x.shape[0], dtype=jnp.int32) < valid
    taps, energies = apply.watched(params, x)
    added = {}
    for name, tap in taps.items():
        tap = jnp.where(real.reshape(-1, *[1] * (tap.ndim - 1)), tap, 0)
        rows = tap.reshape(-1, tap.shape[-1])
        added[name] = stats.add(seen.sums[name], rows, valid * (rows.shape[0] // x.shape[0]))
    of_real = {
        name: total + jnp.sum(jnp.where(real[:, None], energies[name].reshape(len(real), -1), 0))
        for name, total in seen.energies.items()
    }
    return Statistics(added, of_real)


def forward(
    apply: Apply, params: Params, x: Float[AnyArray, "b *s"], valid: Int[AnyArray, ""]
) -> tuple[Float[Array, "b *s"], Float[Array, ""]]:
    """(the block's output, its energy); the energy is not finite if the output is not."""
    y = apply(params, x)
    return y.astype(x.dtype), _energy(y, valid)


def forward_beside(
    apply: Apply,
    params: Params,
    x: Float[AnyArray, "b *s"],
    dense: Float[AnyArray, "b *s"],
    valid: Int[AnyArray, ""],
) -> tuple[Float[Array, "b *s"], Beside]:
    """The block's output, and how far it is from `dense`."""
    y = apply(params, x)
    real = jnp.arange(y.shape[0], dtype=jnp.int32) < valid
    return y.astype(x.dtype), beside(y, dense.astype(y.dtype), real)


def _energy(y: Float[AnyArray, "b *s"], valid: Int[AnyArray, ""]) -> Float[Array, ""]:
    real = (jnp.arange(y.shape[0], dtype=jnp.int32) < valid).reshape(-1, *[1] * (y.ndim - 1))
    return jnp.sum(jnp.square(jnp.where(real, y, 0)))


def widened(params: Params) -> Params:
    """Convert stored params to float32 master weights."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def narrowed(params: Params, dtypes: Sequence[np.dtype]) -> Params:
    """Round float32 params to their stored dtypes, leaf by leaf.

    The barrier keeps XLA from dropping the rounding when they are widened again.
    """
    leaves, tree = jax.tree.flatten(params)
    rounded = [x.astype(dtype) for x, dtype in zip(leaves, dtypes, strict=True)]
    return jax.tree.unflatten(tree, jax.lax.optimization_barrier(rounded))


def alike_runs(family: Family, blocks: Params) -> list[list[int]]:
    """Group consecutive blocks with equal modules, shapes and dtypes; each group is one program."""

    def kind(t: int) -> Any:
        leaves, tree = jax.tree.flatten(blocks[str(t)])
        return family.block_at(t), tree, [(leaf.shape, leaf.dtype) for leaf in leaves]

    return [list(run) for _, run in groupby(range(family.n_blocks), kind)]
