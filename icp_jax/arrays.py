"""The array type for signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    AnyArray = jax.Array  # computations convert NumPy arrays
else:
    AnyArray = jax.Array | np.ndarray  # at run time NumPy arrays are accepted
