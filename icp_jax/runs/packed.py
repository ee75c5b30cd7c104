"""Packed integer weights in the `pack-quantized` format of compressed-tensors.

transformers and vLLM load it. A linear `X.weight` [out, in] becomes `X.weight_packed`, int32 words
with the levels of each row as a bit stream, lowest bit first; `X.weight_scale` [out, groups];
`X.weight_shape`; and for asymmetric grids `X.weight_zero_point`, packed along the outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import Reader, copy_other_files
from converters.layout import plan_layout
from converters.rules import ConversionError, Placed, lookup
from converters.safetensors_files import Writer
from icp_jax.core.quantize import Grid
from icp_jax.runs.export import copy_unpruned, write_json
from icp_jax.streaming.source import FolderSource, part_of


def pack_bits(levels: np.ndarray, bits: int) -> np.ndarray:
    """Pack levels `[r, n]` of `bits` bits into int32 words `[r, ceil(n·bits/32)]`."""
    rows, count = levels.shape
    stream = np.unpackbits(levels.astype(np.uint8)[..., None], axis=-1, bitorder="little")
    stream = stream[..., :bits].reshape(rows, count * bits)
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    return np.packbits(stream, axis=-1, bitorder="little").view("<i4").astype(np.int32)


def unpack_bits(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Invert `pack_bits`: int32 words to levels `[r, count]` uint8."""
    raw = np.ascontiguousarray(words.astype("<i4")).view(np.uint8)
    stream = np.unpackbits(raw, axis=-1, bitorder="little")[:, : count * bits]
    stream = stream.reshape(len(words), count, bits)
    return np.packbits(stream, axis=-1, bitorder="little")[..., 0]


def is_pruned(rule: Placed, linears: set[str]) -> bool:
    """Whether a tensor is the kernel of a prunable linear of a block."""
    return rule.path[0] == "blocks" and rule.path[-1] == "kernel" and rule.path[2] in linears


class PackedSink:
    """Writes pruned blocks with their grids as packed integers, and all else unchanged."""

    def __init__(
        self,
        source: FolderSource,
        folder: Path,
        bits: int,
        group: int | None,
        symmetric: bool,
        chosen: np.ndarray,
    ):
        """chosen: `[L, linears]`, false where a linear is left as it is."""
        self.source, self.bits, self.group, self.symmetric = source, bits, group, symmetric
        names = [spec.name for spec in source.family.linears]
        self.packed = {
            rule.name
            for rule in source.placed
            if is_pruned(rule, set(names)) and chosen[int(rule.path[1]), names.index(rule.path[2])]
        }
        copy_other_files(source.folder, folder)
        config = {**source.config, "quantization_config": self.description()}
        write_json(folder / "config.json", config)
        self.writer = Writer(folder, plan_layout(self._tensors(), {"format": "pt"}))
        copy_unpruned(source, self.writer)

    def description(self) -> dict[str, Any]:
        """The `quantization_config` for config.json."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "group" if self.group else "channel",
            "group_size": self.group,
            "dynamic": False,
        }
        others = [
            rule.name.removesuffix(".weight")
            for rule in self.source.placed
            if rule.transpose and rule.name not in self.packed
        ]
        tied = [] if any(name == "lm_head" for name in others) else ["lm_head"]
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": others + tied,
        }

    def _tensors(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        reader, out = self.source.reader, {}
        for name in reader.names():
            shape, dtype = reader.shape(name), reader.dtype(name)
            if name not in self.packed:
                out[name] = (dtype, shape)
                continue
            outputs, inputs = shape
            groups = inputs // (self.group or inputs)
            out[f"{name}_packed"] = (np.dtype(np.int32), (outputs, -(-inputs * self.bits // 32)))
            out[f"{name}_scale"] = (dtype, (outputs, groups))
            if not self.symmetric:
                words = -(-outputs * self.bits // 32)
                out[f"{name}_zero_point"] = (np.dtype(np.int32), (words, groups))
            out[f"{name}_shape"] = (np.dtype(np.int64), (2,))
        return out

    def write(self, t: int, params: dict[str, Any], grids: Mapping[str, Grid]) -> None:
        for rule in self.source.placed:
            if part_of(rule) != ("blocks", str(t)):
                continue
            leaf = lookup(params, rule.path[2:])
            if rule.name in self.packed:
                self._write_packed(rule, leaf, grids[rule.path[2]])
            else:
                self.writer.write(rule.name, rule.to_torch(leaf))

    def _write_packed(self, rule: Placed, kernel: np.ndarray, grid: Grid) -> None:
        scale, zero = (np.asarray(a, np.float32) for a in (grid.scale, grid.zero))
        group = kernel.shape[0] // len(scale)
        wide_scale, wide_zero = (np.repeat(a, group, axis=0) for a in (scale, zero))
        levels = np.round(kernel.astype(np.float32) / wide_scale) + wide_zero
        again = ((levels - wide_zero) * wide_scale).astype(kernel.dtype)
        if not np.array_equal(again, kernel) or levels.min() < 0 or levels.max() >= 2**self.bits:
            raise RuntimeError(f"tensor {rule.name!r}: a weight is not on its grid")
        write, name = self.writer.write, rule.name
        write(f"{name}_packed", pack_bits(levels.T, self.bits))
        write(f"{name}_scale", np.ascontiguousarray(scale.T.astype(kernel.dtype)))
        if not self.symmetric:
            write(f"{name}_zero_point", np.ascontiguousarray(pack_bits(zero, self.bits).T))
        write(f"{name}_shape", np.asarray(kernel.shape[::-1], np.int64))

    def close(self) -> None:
        self.writer.close()

    def abandon(self) -> None:
        self.writer.abandon()


class Unpacked:
    """Reads a checkpoint's weights by their usual names, dequantizing packed ones."""

    def __init__(self, reader: Reader, folder: Path):
        self.reader = reader
        path = folder / "config.json"
        config = json.loads(path.read_bytes()) if path.is_file() else {}
        groups = (config.get("quantization_config") or {}).get("config_groups") or {}
        self.weights = next((g.get("weights") for g in groups.values()), None)
        self._check(folder, set(reader.names()))

    def _check(self, folder: Path, names: set[str]) -> None:
        """Raise ConversionError for packed tensors that cannot be read."""
        packed = [name for name in names if name.endswith(".weight_packed")]
        told = self.weights or {}
        if packed and (told.get("type") != "int" or not isinstance(told.get("num_bits"), int)):
            raise ConversionError(f"{folder}: config.json does not say how {packed[0]!r} is packed")
        parts = ["scale", "shape", *([] if told.get("symmetric", True) else ["zero_point"])]
        for name in (f"{p.removesuffix('packed')}{part}" for p in packed for part in parts):
            if name not in names:
                raise ConversionError(f"missing tensor {name!r}")

    def names(self) -> list[str]:
        """Tensor names, with one `.weight` for each packed linear."""
        parts = ("_packed", "_scale", "_zero_point", "_shape")
        names = []
        for name in self.reader.names():
            base, found = next(
                ((name.removesuffix(p), p) for p in parts if name.endswith(f".weight{p}")),
                (name, ""),
            )
            if found in ("", "_packed"):
                names.append(base)
        return names

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape; `[out, in]` for a packed linear."""
        if f"{name}_packed" not in self.reader.names():
            return self.reader.shape(name)
        return tuple(int(n) for n in self.reader.read(f"{name}_shape"))

    def read(self, name: str) -> np.ndarray:
        """The tensor; a packed one is dequantized to `[out, in]` in the dtype of its scales."""
        if f"{name}_packed" not in self.reader.names():
            return self.reader.read(name)
        assert self.weights is not None
        bits = int(self.weights["num_bits"])
        outputs, inputs = self.reader.read(f"{name}_shape").tolist()
        levels = unpack_bits(self.reader.read(f"{name}_packed"), bits, inputs)
        scale = self.reader.read(f"{name}_scale")
        if self.weights["symmetric"]:
            zero = np.full(scale.shape, 2 ** (bits - 1), np.float32)
        else:
            packed = np.ascontiguousarray(self.reader.read(f"{name}_zero_point").T)
            zero = unpack_bits(packed, bits, outputs).T.astype(np.float32)
        group = inputs // scale.shape[1]
        wide_zero, wide_scale = (np.repeat(a, group, axis=1) for a in (zero, scale))
        values = (levels.astype(np.float32) - wide_zero) * wide_scale.astype(np.float32)
        return values.astype(scale.dtype)
