"""Re-reading a pruned folder: what is zero, in which pattern, what is not finite, what changed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converters import table_for
from converters.files import RECORD, Reader, lone_torch_file, open_checkpoint
from converters.rules import ConversionError, Placed
from icp_jax.core.masks import parse_pattern
from icp_jax.errors import InputError
from icp_jax.models import FAMILIES, make_family
from icp_jax.runs.packed import Unpacked, is_pruned
from icp_jax.streaming.background import in_threads
from icp_jax.streaming.source import FolderSource, all_finite, describe, parts, read_config

SHOWN = 2  # names of a kind in one line
GROUPS = (4, 8)  # the sizes of groups in which a pattern is always looked for


@dataclass(frozen=True)
class Counted:
    """What the exported file holds of the pruned layers."""

    zeros: int
    size: int
    layers: dict[str, tuple[int, int]]  # torch name -> (zeros, size)

    @property
    def sparsity(self) -> float:
        return self.zeros / self.size


def verify_export(
    source: FolderSource,
    folder: Path,
    budgets: list[dict[str, int]],
    pattern: tuple[int, int] | None,
    tuned: bool,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Counted:
    """Re-read a folder just exported: finite, sparse as promised, the rest bit-identical.

    budgets: zeros a linear a block. tuned: whether blocks after the first may have changed
    beside their kernels. tick: called with (tensors done, tensors in all). Raises RuntimeError
    for a folder that is not as it should be.
    """
    with closing(open_checkpoint(folder)) as reader:
        weights = Unpacked(reader, folder)
        if set(weights.names()) != set(source.reader.names()):
            raise RuntimeError(f"{folder}: the exported tensors are not those of the source")
        check = partial(_check, source, weights, budgets, pattern, tuned)
        layers: dict[str, tuple[int, int]] = {}
        names = weights.names()
        tick(0, len(names))
        for k, (name, counted) in enumerate(zip(names, in_threads(check, names), strict=True)):
            tick(k + 1, len(names))
            if counted is not None:
                layers[name] = counted
    return Counted(sum(z for z, _ in layers.values()), sum(n for _, n in layers.values()), layers)


def _check(
    source: FolderSource,
    weights: Unpacked,
    budgets: list[dict[str, int]],
    pattern: tuple[int, int] | None,
    tuned: bool,
    name: str,
) -> tuple[int, int] | None:
    """(zeros, size) of a pruned kernel, None of another tensor. Raises for what is not right."""
    tensor, rule = weights.read(name), next((r for r in source.placed if r.name == name), None)
    budget, counted = None if rule is None else _budget(rule, budgets), None
    if budget is None:
        free = tuned and rule is not None and rule.path[0] == "blocks" and rule.path[1] != "0"
        if not free and not same_bytes(tensor, source.reader.read(name)):
            raise RuntimeError(f"exported tensor {name!r} changed, and should not have")
    else:
        zeros = tensor.size - int(np.count_nonzero(tensor))
        if zeros < budget:
            raise RuntimeError(f"exported tensor {name!r} has {zeros} zeros, not {budget}")
        if pattern is not None and densest_group(tensor, pattern[1]) > pattern[0]:
            raise RuntimeError(f"exported tensor {name!r} breaks the pattern {pattern}")
        counted = zeros, tensor.size
    if not all_finite(tensor):
        raise InputError(
            f"pruned tensor {name!r} leaves the range of {tensor.dtype}: "
            "lower --compensate.lr or add calibration samples"
        )
    weights.reader.forget()
    source.reader.forget()
    return counted


def _budget(rule: Placed, budgets: list[dict[str, int]]) -> int | None:
    if rule.path[0] != "blocks" or rule.path[-1] != "kernel":
        return None
    return budgets[int(rule.path[1])].get(rule.path[2])


def densest_group(weight: np.ndarray, m: int) -> int:
    """The most non-zeros in any m consecutive inputs of a torch weight [out, in]."""
    groups = np.asarray(weight != 0).reshape(weight.shape[0], -1, m)
    return int(groups.sum(axis=2).max())


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two tensors of one dtype and shape are equal to the bit, NaN or not."""
    one, two = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return len(one) == len(two) and all(map(np.array_equal, parts(one), parts(two)))


def verify(folder: str | Path, source: str | Path | None = None) -> dict[str, Any]:
    """Facts about a folder, pruned here or anywhere, as plain values.

    layers: for every linear that could be pruned (of a model of no known family: every weight of
    rank two in a block) its size, zeros, sparsity, and the n:m patterns that hold in every group
    of 4, of 8, and of m inputs, where the run's record names a pattern of such m. not_finite:
    tensors with NaN or infinity. missing, unexpected, misshapen: tensors in which the files are not
    what the config promises (of a known family). With `source`: changed, unchanged and added
    tensors, those whose shape or dtype is another, and more that are missing.
    """
    folder = Path(folder)
    if lone_torch_file(folder) is None:
        read_config(folder, quantized=True)
    with ExitStack() as opened:
        reader = opened.enter_context(closing(open_checkpoint(folder)))
        other = None if source is None else opened.enter_context(closing(open_checkpoint(source)))
        weights = Unpacked(reader, folder)
        prunable, broken = _promised(describe(folder, reader, quantized=True), weights)
        facts = _facts(folder, weights, prunable, other)
        missing = set() if other is None else set(other.names()) - set(weights.names())
        return {**facts, **broken, "missing": sorted(missing.union(broken["missing"]))}


def _facts(
    folder: Path, weights: Unpacked, prunable: Callable[[str], bool], other: Reader | None
) -> dict[str, Any]:
    """What `verify` finds by reading every tensor."""
    groups, reader = _groups(folder), weights.reader
    layers: list[dict[str, Any]] = []
    found: dict[str, list[str]] = {"not_finite": []}
    if other is not None:
        found |= {"changed": [], "unchanged": [], "reshaped": []}
        found["added"] = sorted(set(weights.names()) - set(other.names()))
    for name in weights.names():
        reader.forget()
        tensor = weights.read(name)
        if not all_finite(tensor):
            found["not_finite"].append(name)
        if tensor.ndim == 2 and prunable(name):
            layers.append(_layer(name, tensor, groups))
        if other is not None and name in other.names():
            other.forget()
            old = other.read(name)
            if old.shape != tensor.shape or old.dtype != tensor.dtype:
                found["reshaped"].append(name)
            else:
                found["changed" if not same_bytes(old, tensor) else "unchanged"].append(name)
    if not layers:
        raise ConversionError(f"{folder} holds no weights of transformer blocks")
    zeros, size = (sum(layer[key] for layer in layers) for key in ("zeros", "size"))
    counts = {"sparsity": zeros / size, "zeros": zeros, "size": size}
    return {"folder": str(folder), **counts, "layers": layers, **found}


def check_facts(facts: dict[str, Any]) -> None:
    """Raises InputError for a folder that cannot be used: in one line, what is wrong with it."""
    said = []
    for key in ("missing", "unexpected", "misshapen", "not_finite"):
        if names := facts[key]:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            said.append(f"{key.replace('_', ' ')}: {', '.join(names[:SHOWN])}{more}")
    if said:
        raise InputError(f"{facts['folder']} is not whole: {'; '.join(said)}")


def _groups(folder: Path) -> list[int]:
    """GROUPS, and the group of the pattern that the folder's record says it was pruned to."""
    pattern = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no record, or another's
        record = json.loads((folder / RECORD).read_text())
        pattern = parse_pattern(record["config"]["prune"]["pattern"])
    return sorted({*GROUPS, *([pattern[1]] if pattern else [])})


def _promised(
    config: dict[str, Any], weights: Unpacked
) -> tuple[Callable[[str], bool], dict[str, list[str]]]:
    """Whether a name is that of a linear that is pruned, and how the files break the promise of
    the config: both by the family's table, where there is one.
    """
    kind, quantized = str(config.get("model_type")), config.get("quantization_config")
    if kind in FAMILIES and (weights.weights is not None or not quantized):
        shapes = {name: weights.shape(name) for name in weights.names()}
        try:
            placed, broken = table_for(kind).compare(config, shapes)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            make_family(config)  # says what is wrong in words of its own
            raise InputError(f"config.json describes no {kind} model: {error!r}") from None
        with contextlib.suppress(InputError):
            linears = {spec.name for spec in make_family(config).linears}
            return {r.name for r in placed if is_pruned(r, linears)}.__contains__, broken
    else:
        broken = {"missing": [], "unexpected": [], "misshapen": []}
    return lambda name: name.endswith(".weight") and ".layers." in f".{name}", broken


def _layer(name: str, tensor: np.ndarray, groups: Sequence[int]) -> dict[str, Any]:
    zeros = tensor.size - int(np.count_nonzero(tensor))
    patterns = []
    for m in groups:
        if tensor.shape[1] % m == 0 and (n := densest_group(tensor, m)) < m:
            patterns.append(f"{n}:{m}")
    record = {"name": name, "size": tensor.size, "zeros": zeros, "sparsity": zeros / tensor.size}
    return {**record, "patterns": patterns}
