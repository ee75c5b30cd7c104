"""Array types for signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    AnyArray = jax.Array  # the type of results for both kinds
else:
    AnyArray = jax.Array | np.ndarray
