"""The old path of `icp_jax.core.quantize`; it goes with the next release."""

from icp_jax.core.quantize import Grid, make_grid, round_kernel, to_grid, to_level

__all__ = ["Grid", "make_grid", "round_kernel", "to_grid", "to_level"]
