"""The model's pass over a prompt, and over one more token of every row.

On the CPU each block is a program of its own: blocks alike share it, so a model of thirty blocks
compiles in a fifth of the time of one program for all, and reads its weights at the speed of the
memory. An accelerator, which would wait for the calls, gets one program.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icp_jax import backend
from icp_jax.arrays import AnyArray
from icp_jax.backend.products import full_precision
from icp_jax.models.cache import CACHE, of_block
from icp_jax.models.spec import Family
from icp_jax.streaming.unpacking import cast_kernel, is_packed, to_move

Params = dict[str, Any]
Caches = list[dict[str, Array]]  # the keys and values of each block


class Slots(NamedTuple):
    """Where the given tokens lie; see `icp_jax.models.cache`."""

    start: Int[AnyArray, ""]
    first: Int[AnyArray, "b"]


def on_device(source: Any, dtype: str) -> Params:
    """All params of a model on the device: matrices in the compute dtype, the rest in float32."""

    def sent(leaf: Any) -> jax.Array:
        if is_packed(leaf):
            return cast_kernel(jax.device_put(leaf), dtype)
        return jnp.asarray(leaf).astype(dtype if np.ndim(leaf) > 1 else jnp.float32)

    blocks = [
        jax.tree.map(sent, to_move(source, t), is_leaf=is_packed)
        for t in range(source.family.n_blocks)
    ]
    others = {name: jax.tree.map(sent, getattr(source, name)()) for name in ("embed", "head")}
    return {**others, "blocks": blocks}


@partial(jax.jit, static_argnums=(0, 1))
def _embed(module, dtype, params, tokens, slots):
    with full_precision("float32"):
        found, _ = module.apply({"params": params, CACHE: slots._asdict()}, tokens, mutable=[CACHE])
    return found.astype(dtype)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def block_step(module, dtype, room, params, cache, x, slots):
    variables = {"params": params, CACHE: {**slots._asdict(), **cache}}
    with full_precision(dtype):
        x, found = module.apply(variables, x, mutable=[CACHE])
    more = {name: room - held.shape[2] for name, held in of_block(found).items()}
    return x.astype(dtype), {
        name: jnp.pad(held, ((0, 0), (0, 0), (0, more[name]), (0, 0)))
        for name, held in of_block(found).items()
    }


@partial(jax.jit, static_argnums=(0, 1))
def _logits(module, dtype, params, table, x):
    with full_precision(dtype):
        return module.apply({"params": params}, x[:, -1], table).astype(jnp.float32)


def _advance(
    family: Family,
    dtype: str,
    room: int,
    params: Params,
    caches: Caches,
    tokens: Int[AnyArray, "b t"],
    slots: Slots,
) -> tuple[Float[Array, "b v"], Caches]:
    """(the logits after the last token, the caches with the tokens added).

    room: slots of the caches. caches: empty dicts for a prompt; the given ones are used up.
    """
    x = _embed(family.embed, dtype, params["embed"], tokens, slots)
    grown = []
    for t, (block, cache) in enumerate(zip(params["blocks"], caches, strict=True)):
        x, cache = block_step(family.block_at(t), dtype, room, block, cache, x, slots)
        grown.append(cache)
    table = family.head_table(params["embed"])
    return _logits(family.head, dtype, params["head"], table, x), grown


_whole = jax.jit(_advance, static_argnums=(0, 1, 2), donate_argnums=4)


def advance(*given: Any) -> tuple[Float[Array, "b v"], Caches]:
    """`_advance`, in the programs that suit the device."""
    return (_advance if backend.is_host() else _whole)(*given)
