"""Verify a pruned folder: sparsity, n:m patterns, non-finite values and changed tensors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from converters import table_for
from converters.files import RECORD, Reader, open_checkpoint
from converters.rules import ConversionError
from icp_jax.core.masks import parse_pattern
from icp_jax.errors import InputError
from icp_jax.models import FAMILIES, make_family
from icp_jax.runs.pack import packed_sizes
from icp_jax.runs.packed import Unpacked, is_pruned
from icp_jax.runs.verify_export import densest_group, same_bytes
from icp_jax.streaming.finite import all_finite
from icp_jax.streaming.model_config import alone, describe, read_config

SHOWN = 2  # tensor names shown per problem
GROUPS = (4, 8)  # group sizes m that are always checked for an n:m pattern


def verify(folder: str | Path, source: str | Path | None = None) -> dict[str, Any]:
    """Read a checkpoint folder and return facts about it as JSON values.

    The folder may come from any tool. Keys of the result:
    layers: size, zeros, sparsity and n:m patterns of every prunable linear (for an unknown family,
    of every 2-D weight in a block). Patterns are checked for m = 4, 8 and that of the run's record.
    not_finite: tensors with NaN or infinity. missing, unexpected, misshapen: tensors that differ
    from what the config of a known family requires. With `source`: changed, unchanged, added,
    reshaped (another shape or dtype), and more missing tensors. packed: the sizes of a folder that
    `pack` wrote, whose checksums this proves; None for others.
    Raises InputError or ConversionError.
    """
    folder = Path(folder)
    if not alone(folder):
        read_config(folder, quantized=True)
    with ExitStack() as opened:
        reader = opened.enter_context(closing(open_checkpoint(folder)))
        other = None if source is None else opened.enter_context(closing(open_checkpoint(source)))
        weights = Unpacked(reader, folder)
        prunable, broken = _promised(describe(folder, reader, quantized=True), weights)
        facts = _facts(folder, weights, prunable, other)
        missing = set() if other is None else set(other.names()) - set(weights.names())
        facts["packed"] = packed_sizes(reader)
        return {**facts, **broken, "missing": sorted(missing.union(broken["missing"]))}


def _facts(
    folder: Path, weights: Unpacked, prunable: Callable[[str], bool], other: Reader | None
) -> dict[str, Any]:
    """The facts that need every tensor to be read."""
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
        raise ConversionError(f"{folder} has no weights of transformer blocks: give a checkpoint")
    zeros, size = (sum(layer[key] for layer in layers) for key in ("zeros", "size"))
    counts = {"sparsity": zeros / size, "zeros": zeros, "size": size}
    return {"folder": str(folder), **counts, "layers": layers, **found}


def check_facts(facts: dict[str, Any]) -> None:
    """Raise InputError if the facts show a broken checkpoint."""
    said = []
    for key in ("missing", "unexpected", "misshapen", "not_finite"):
        if names := facts[key]:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            said.append(f"{key.replace('_', ' ')}: {', '.join(names[:SHOWN])}{more}")
    if said:
        raise InputError(f"{facts['folder']} is not a valid checkpoint: {'; '.join(said)}")


def _groups(folder: Path) -> list[int]:
    """GROUPS, and the m of the n:m pattern in the folder's run record."""
    pattern = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no record of ours
        record = json.loads((folder / RECORD).read_text())
        pattern = parse_pattern(record["config"]["prune"]["pattern"])
    return sorted({*GROUPS, *([pattern[1]] if pattern else [])})


def _promised(
    config: dict[str, Any], weights: Unpacked
) -> tuple[Callable[[str], bool], dict[str, list[str]]]:
    """(predicate for the names of prunable linears, tensors that differ from the config).

    Both use the table of the family, if it is known.
    """
    kind, quantized = str(config.get("model_type")), config.get("quantization_config")
    if kind in FAMILIES and (weights.weights is not None or not quantized):
        shapes = {name: weights.shape(name) for name in weights.names()}
        try:
            placed, broken = table_for(kind).compare(config, shapes)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            make_family(config)  # raises a better message for most invalid configs
            raise InputError(f"config.json is not a valid {kind} config: {error!r}") from None
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
