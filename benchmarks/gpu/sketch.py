"""A kernel in a few hundred bytes, from which the distance to another kernel can be told.

The mask is kept as its hash and as the bits of some entries; the values as their norm and as a
count sketch: signed sums of the entries in a few buckets. The distance of two count sketches is,
on average, the distance of the kernels.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from typing import Any

import numpy as np

ENTRIES = 1024  # of a mask; its share that differs is known to some 0.3 % where it is 1 %
BUCKETS = 64  # the distance is known to some 10 %


def of(name: str, kernel: np.ndarray) -> dict[str, Any]:
    """The sketch of a kernel. name: says which entries and signs, so it must be the same again."""
    flat = np.asarray(kernel, np.float64).ravel()
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    where = rng.choice(flat.size, min(ENTRIES, flat.size), replace=False)
    signs = rng.integers(0, 2, flat.size) * 2 - 1
    sums = np.bincount(rng.integers(0, BUCKETS, flat.size), flat * signs, BUCKETS)
    mask = flat != 0
    return {
        "mask": hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:16],
        "zeros": int(flat.size - mask.sum()),
        "entries": _text(np.packbits(mask[where])),
        "norm": float(np.linalg.norm(flat)),
        "sums": _text(sums.astype("<f4")),
    }


def compare(one: dict[str, Any], two: dict[str, Any]) -> tuple[float, float]:
    """(share of the mask's entries that differ, distance of the kernels relative to `one`)."""
    a, b = (np.unpackbits(_bytes(x["entries"])) for x in (one, two))
    differ = 0.0 if one["mask"] == two["mask"] else float(np.mean(a != b))
    x, y = (_bytes(s["sums"]).view("<f4").astype(np.float64) for s in (one, two))
    return differ, float(np.linalg.norm(x - y) / max(one["norm"], np.finfo(np.float64).tiny))


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8)
