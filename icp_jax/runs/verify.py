"""Re-reading a pruned folder: what is zero, in which pattern, what is not finite, what changed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from converters import table_for
from converters.files import RECORD, Reader, lone_torch_file, open_checkpoint
from converters.rules import ConversionError
from icp_jax.core.masks import parse_pattern
from icp_jax.errors import InputError
from icp_jax.models import FAMILIES, make_family
from icp_jax.runs.packed import Unpacked, is_pruned
from icp_jax.runs.verify_export import densest_group, same_bytes
from icp_jax.streaming.source import all_finite, describe, read_config

SHOWN = 2  # names of a kind in one line
GROUPS = (4, 8)  # the sizes of groups in which a pattern is always looked for


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
