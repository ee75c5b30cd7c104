"""The algorithm: pure functions of arrays, for `jax.jit`, `jax.vmap`, `jax.lax.map` and `jax.jvp`.

Nothing here reads files or settings, or starts threads. `icp` prunes a whole model in one trace;
the streaming driver calls the same functions on a batch of samples at a time.
"""
