"""Rules for SAM's layers. Convolutions are folded into 2-D kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from converters.rules import ConversionError, Placed


@dataclass(frozen=True)
class Folded(Placed):
    """A convolution: all axes of the torch weight but the first are folded into one."""

    def to_tree(self, tensor: np.ndarray) -> np.ndarray:
        return super().to_tree(tensor.reshape(self.shape[0], -1))

    def to_torch(self, leaf: np.ndarray) -> np.ndarray:
        flat = super().to_torch(leaf)
        if flat.shape != (self.shape[0], int(np.prod(self.shape[1:]))):
            raise ConversionError(
                f"tensor {self.name!r}: a kernel of shape {list(leaf.shape)} does not unfold to "
                f"{list(self.shape)}"
            )
        return flat.reshape(self.shape)


def plain(name: str, path: str, *shape: int) -> Placed:
    return Placed(name, tuple(path.split("/")), shape, transpose=False)


def linear(name: str, path: str, out: int, inp: int, bias: bool = True) -> Iterator[Placed]:
    yield Placed(f"{name}.weight", (*path.split("/"), "kernel"), (out, inp), transpose=True)
    if bias:
        yield plain(f"{name}.bias", f"{path}/bias", out)


def conv(
    name: str, path: str, out: int, inp: int, size: int, bias: bool = True
) -> Iterator[Placed]:
    """Kernel `[inp * size * size, out]`, rows ordered (channel, row, column)."""
    shape = (out, inp, size, size)
    yield Folded(f"{name}.weight", (*path.split("/"), "kernel"), shape, transpose=True)
    if bias:
        yield plain(f"{name}.bias", f"{path}/bias", out)


def upscale(name: str, path: str, inp: int, out: int) -> Iterator[Placed]:
    """A transposed convolution: `[in, out, 2, 2]` in torch, kernel `[in, out * 2 * 2]`."""
    shape = (inp, out, 2, 2)
    yield Folded(f"{name}.weight", (*path.split("/"), "kernel"), shape, transpose=False)
    yield plain(f"{name}.bias", f"{path}/bias", out)


def norm(name: str, path: str, width: int) -> Iterator[Placed]:
    yield plain(f"{name}.weight", f"{path}/scale", width)
    yield plain(f"{name}.bias", f"{path}/bias", width)
