"""Backend-specific code: device, matrix products, heap, compile cache.

The names of `current` are imported on first use, since `compile_cache` must be set up before JAX
is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icp_jax.backend.current import device, is_host, name, use

__all__ = ["device", "is_host", "name", "use"]


def __getattr__(wanted: str) -> Any:
    if wanted not in __all__:
        raise AttributeError(f"module 'icp_jax.backend' has no attribute {wanted!r}")
    value = getattr(importlib.import_module("icp_jax.backend.current"), wanted)
    globals()[wanted] = value
    return value
