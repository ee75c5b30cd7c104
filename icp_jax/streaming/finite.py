"""The check of weights for NaN and infinity."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from icp_jax.errors import InputError


def all_finite(tensor: np.ndarray) -> bool:
    """Whether a tensor has no NaN or infinity, checked in small parts to save memory."""
    flat = tensor.reshape(-1)
    if flat.dtype == ml_dtypes.bfloat16:  # compare the exponent bits, faster than NumPy's isfinite
        flat, exponent = flat.view(np.uint16), np.uint16(0x7F80)
        return not any(np.any((part & exponent) == exponent) for part in parts(flat))
    return flat.dtype.kind != "f" or all(np.isfinite(part).all() for part in parts(flat))


def parts(flat: np.ndarray, size: int = 1 << 20) -> Iterator[np.ndarray]:
    """Split `flat` into parts of `size`, so that temporaries stay small."""
    return (flat[start : start + size] for start in range(0, len(flat), size))


def not_finite(name: str) -> InputError:
    return InputError(f"tensor {name!r} has values that are not finite (NaN or infinity)")
