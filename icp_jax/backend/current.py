"""Which backend it is, and its device."""

from __future__ import annotations

from typing import Any

import jax

# Part of the key of every compiled program, so that one made for another backend is not reused.
use = jax.make_user_context(None)


def name() -> str:
    """`cpu`, `gpu` or `tpu`: the one said by `with use(...)`, else the one JAX computes on.

    Functions that are traced ask here. Inside `with use("gpu")` they take the GPU's forms on
    any machine.
    """
    return use.value or jax.default_backend()


def is_host() -> bool:
    """Whether the device is the host itself: nothing travels, and one memory holds both."""
    return name() == "cpu"


def device() -> Any:
    """JAX's default device."""
    default = getattr(jax.config, "jax_default_device", None)  # unknown to JAX's own types
    return default if isinstance(default, jax.Device) else jax.local_devices()[0]
