"""The re-tune of a pruned block: `compensate` with the zeros of its linears held.

Reference: "Reconstruct the pruned model block by block" (BR+GP), EMNLP 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.dtypes import canonicalize_dtype
from jaxtyping import Int

from icp_jax.core import scaling
from icp_jax.core.prune import LayerMetrics
from icp_jax.models.spec import Family

Params = dict[str, Any]


@partial(jax.jit, static_argnums=0)
def masks(family: Family, params: Params) -> Params:
    """Keep masks of the block's linears: False where a kernel is zero. Other leaves have none."""
    kernels = {spec.name: params[spec.name]["kernel"] for spec in family.linears}
    return {name: {"kernel": scaling.bits(kernel) > 0} for name, kernel in kernels.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _zeros(family: Family, dtypes: tuple[str, ...], params: Params) -> Int[jax.Array, "linears"]:
    kernels = [params[spec.name]["kernel"] for spec in family.linears]
    stored = [k.astype(canonicalize_dtype(d)) for k, d in zip(kernels, dtypes, strict=True)]
    return jnp.stack([scaling.zeros(kernel) for kernel in stored])


def recounted(
    family: Family, params: Params, layers: LayerMetrics, dtypes: Mapping[str, str]
) -> LayerMetrics:
    """The metrics with the zeros of the re-tuned kernels: rounding may make a few more.

    dtypes: the stored dtype of each linear.
    """
    stored_as = tuple(dtypes[spec.name] for spec in family.linears)
    return layers._replace(zeros=_zeros(family, stored_as, params))
