"""Deprecated path of `icp_jax.runs.convert`, to be removed in the next release."""

from icp_jax.runs.convert import convert

__all__ = ["convert"]
