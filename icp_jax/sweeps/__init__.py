"""Many runs of one model: a list of points, or a search, with a record of every point.

A sweep file is a Python file whose `get_sweep()` returns a `Sweep`.
"""

from icp_jax.sweeps.settings import Point, Sweep
from icp_jax.sweeps.space import choice, grid, integers, log_uniform, points, uniform

__all__ = [
    "Point",
    "Sweep",
    "choice",
    "grid",
    "integers",
    "log_uniform",
    "points",
    "uniform",
]
