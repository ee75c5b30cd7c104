"""The algorithm: pure functions of arrays, for `jax.jit`, `jax.vmap`, `jax.lax.map` and `jax.jvp`.

Nothing here reads files, starts threads or asks for settings. `icp` prunes a whole model in one
trace; the streaming driver calls the same pieces, a batch of samples at a time.
"""
