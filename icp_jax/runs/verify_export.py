"""Verify an exported folder against the run that wrote it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from converters.files import open_checkpoint
from converters.packed_write import packed_size
from converters.rules import Placed
from icp_jax.core.choice import LEFT
from icp_jax.errors import InputError
from icp_jax.runs.packed import Unpacked
from icp_jax.streaming.background import in_threads
from icp_jax.streaming.finite import all_finite, parts
from icp_jax.streaming.source import FolderSource


@dataclass(frozen=True)
class Counted:
    """Zeros of the blocks' linear layers, counted in the exported files."""

    zeros: int
    size: int
    layers: dict[str, tuple[int, int]]  # torch name -> (zeros, size)
    left: frozenset[str] = frozenset()  # of the layers, those that were left as they are
    packed_bytes: int = 0  # of the layers as `icp-jax pack` writes them

    @property
    def sparsity(self) -> float:
        return self.zeros / self.size

    @property
    def pruned_sparsity(self) -> float | None:
        """The mean sparsity without the layers that were left as they are; None without any."""
        if not self.left:
            return None
        zeros, sizes = zip(*(v for k, v in self.layers.items() if k not in self.left), strict=True)
        return sum(zeros) / sum(sizes)


def verify_export(
    source: FolderSource,
    folder: Path,
    budgets: list[dict[str, int]],
    pattern: tuple[int, int] | None,
    tuned_from: int,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Counted:
    """Check an exported folder: finite, as sparse as required, and otherwise bit-identical.

    budgets: required zeros by block and linear, or LEFT. pattern: required n:m, or None.
    tuned_from: the first block whose other params may have changed too.
    tick: called with (tensors done, tensors in all). Raises RuntimeError for a wrong tensor, and
    InputError for one with values out of range.
    """
    with closing(open_checkpoint(folder)) as reader:
        weights = Unpacked(reader, folder)
        if set(weights.names()) != set(source.reader.names()):
            raise RuntimeError(f"{folder}: the exported tensors differ from the source's")
        check = partial(_check, source, weights, budgets, pattern, tuned_from)
        layers: dict[str, tuple[int, int]] = {}
        packed = 0
        left = {r.name for r in source.placed if _budget(r, budgets) == LEFT}
        names = weights.names()
        tick(0, len(names))
        for k, (name, counted) in enumerate(zip(names, in_threads(check, names), strict=True)):
            tick(k + 1, len(names))
            if counted is not None:
                layers[name], packed = counted[:2], packed + counted[2]
    zeros, size = (sum(column) for column in zip(*layers.values(), strict=True))
    return Counted(zeros, size, layers, frozenset(left), packed)


def _check(
    source: FolderSource,
    weights: Unpacked,
    budgets: list[dict[str, int]],
    pattern: tuple[int, int] | None,
    tuned_from: int,
    name: str,
) -> tuple[int, int, int] | None:
    """Check one tensor; of a linear's kernel, returns (zeros, size, bytes when packed)."""
    tensor, rule = weights.read(name), next((r for r in source.placed if r.name == name), None)
    budget, counted = None if rule is None else _budget(rule, budgets), None
    if budget in (None, LEFT):
        tuned = rule is not None and rule.path[0] == "blocks" and int(rule.path[1]) >= tuned_from
        if not tuned and not same_bytes(tensor, source.reader.read(name)):
            raise RuntimeError(f"exported tensor {name!r} changed, but must equal the source's")
    if budget is not None:
        zeros = tensor.size - int(np.count_nonzero(tensor))
        if zeros < budget:
            raise RuntimeError(f"exported tensor {name!r} has {zeros} zeros, not {budget}")
        held = pattern if budget != LEFT else None
        if held is not None and densest_group(tensor, held[1]) > held[0]:
            raise RuntimeError(f"exported tensor {name!r} breaks the pattern {pattern}")
        counted = zeros, tensor.size, packed_size(tensor)
    if not all_finite(tensor):
        raise InputError(
            f"pruned tensor {name!r} exceeds the range of {tensor.dtype}: "
            "lower compensate.lr or add calibration samples"
        )
    weights.reader.forget()
    source.reader.forget()
    return counted


def _budget(rule: Placed, budgets: list[dict[str, int]]) -> int | None:
    if rule.path[0] != "blocks" or rule.path[-1] != "kernel":
        return None
    return budgets[int(rule.path[1])].get(rule.path[2])


def densest_group(weight: np.ndarray, m: int) -> int:
    """The maximum number of non-zeros in m consecutive inputs of a torch weight [out, in]."""
    groups = np.asarray(weight != 0).reshape(weight.shape[0], -1, m)
    return int(groups.sum(axis=2).max())


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two tensors of equal dtype and shape are bit-identical, including NaN."""
    one, two = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return len(one) == len(two) and all(map(np.array_equal, parts(one), parts(two)))
