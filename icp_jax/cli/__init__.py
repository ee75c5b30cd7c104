"""The command line interface."""

from icp_jax.cli.app import main

__all__ = ["main"]
