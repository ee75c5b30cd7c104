"""Deprecated path of `icp_jax.core.quantize`, to be removed in the next release."""

from icp_jax.core.quantize import Grid, make_grid, round_kernel, to_grid, to_level

__all__ = ["Grid", "make_grid", "round_kernel", "to_grid", "to_level"]
