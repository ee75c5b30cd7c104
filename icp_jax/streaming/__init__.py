"""The algorithm for models that do not fit in memory: one block and one batch at a time.

It calls the functions of `icp_jax.core`. This package holds the storage of streams and blocks,
their transfers, and the loop.
"""
