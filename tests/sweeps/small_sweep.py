"""A sweep of a random OPT that takes seconds."""

from pathlib import Path

import numpy as np

from icp_jax import CalibrationConfig, CompensateConfig, PruneConfig, RunConfig
from icp_jax.sweeps import Sweep


def data(folder):
    """Files of token ids: (calibration, evaluation)."""
    rng = np.random.default_rng(1)
    paths = folder / "calibration.npy", folder / "evaluation.npy"
    for path, rows in zip(paths, (6, 5), strict=True):
        np.save(path, rng.integers(3, 2048, (rows, 24)))
    return tuple(map(str, paths))


def base(model, calibration, **settings):
    return RunConfig(
        model=str(model),
        prune=PruneConfig(sparsity=0.5, **settings),
        compensate=CompensateConfig(lr=1e-3),
        calibration=CalibrationConfig(calibration, seq_len=24),
    )


def sweep(model, folder, points=(), **fields):
    calibration, evaluation = data(folder)
    return Sweep(base(model, calibration), points, data=evaluation, seq_len=24, **fields)


FILE = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import small_sweep
from icp_jax.sweeps import choice, grid, uniform

def get_sweep():
    return small_sweep.sweep({model!r}, Path({folder!r}), {fields})
"""


def write(model, folder, fields):
    """A sweep file. fields: Python text of the arguments after the folder."""
    path, tests = folder / "mine.py", str(Path(__file__).parent)
    path.write_text(FILE.format(tests=tests, model=str(model), folder=str(folder), fields=fields))
    return str(path)
