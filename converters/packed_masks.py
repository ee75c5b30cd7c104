"""Bitmasks that are stored deflated, where that makes a packed tensor much smaller."""

from __future__ import annotations

import zlib

import numpy as np
from jaxtyping import UInt8

from converters.rules import ConversionError

GAIN = 0.03  # of the tensor's parts: where less is saved, the bitmask is stored as it is
SPAN = 128  # elements at most for each byte of the parts, so that a small file stays a small tensor

Bytes = UInt8[np.ndarray, "b"]


def deflated(mask: Bytes, others: int) -> Bytes | None:
    """A bitmask as a zlib stream; None where that is not worth it.

    others: bytes of the tensor's other parts.
    """
    # runs of one byte, no other matches: as small as any setting for random zeros, and faster
    squeeze = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    stream = squeeze.compress(mask.data) + squeeze.flush()
    worth = len(mask) - len(stream) > GAIN * (len(mask) + others)
    if not worth or too_small(8 * len(mask), len(stream) + others):
        return None
    return np.frombuffer(stream, np.uint8)


def too_small(size: int, nbytes: int) -> bool:
    """Whether parts of `nbytes` bytes may not have a deflated bitmask of `size` elements."""
    return size > SPAN * nbytes


def inflated(stream: Bytes, count: int) -> Bytes:
    """The bitmask `[count]` of a zlib stream. Raises ConversionError if it is not one.

    Never makes more than count + 1 bytes.
    """
    squeezed = zlib.decompressobj()
    try:
        mask = squeezed.decompress(stream.data, count + 1)
    except zlib.error:
        raise ConversionError("its bitmask is no zlib stream") from None
    if len(mask) != count or not squeezed.eof or squeezed.unused_data:
        raise ConversionError("its bitmask has another length deflated")
    return np.frombuffer(mask, np.uint8)
