"""The current backend and its device."""

from __future__ import annotations

from typing import Any

import jax

# Part of the cache key of every compiled program, so that backends do not share programs. It must
# exist before the first trace, or the second call traces again: what is traced imports this module
# by itself, not on first use.
use = jax.make_user_context(None)


def name() -> str:
    """`cpu`, `gpu` or `tpu`: as set by `with use(...)`, else JAX's default backend.

    Traced functions ask here. Inside `with use("gpu")` they compile the GPU's code paths on any
    machine.
    """
    return use.value or jax.default_backend()


def is_host() -> bool:
    """Whether the device is the host itself, with one memory and no transfers."""
    return name() == "cpu"


def device() -> Any:
    """JAX's default device."""
    default = getattr(jax.config, "jax_default_device", None)  # unknown to JAX's own types
    return default if isinstance(default, jax.Device) else jax.local_devices()[0]
