"""The algorithm for models that do not fit: a block at a time, a batch of samples at a time.

The pieces are those of `icp_jax.core`; here is where the streams and the blocks live, how they
travel, and the loop that drives them.
"""
