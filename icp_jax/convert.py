"""The old path of `icp_jax.runs.convert`; it goes with the next release."""

from icp_jax.runs.convert import convert

__all__ = ["convert"]
