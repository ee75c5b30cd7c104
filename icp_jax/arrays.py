"""What signatures say of arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    AnyArray = jax.Array  # what becomes of either in a computation
else:
    AnyArray = jax.Array | np.ndarray  # where NumPy's are taken too
