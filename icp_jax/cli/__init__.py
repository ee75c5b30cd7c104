"""The command line: what users type, and what they see."""

from icp_jax.cli.app import main

__all__ = ["main"]
