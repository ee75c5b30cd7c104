"""Where blocks live: a checkpoint folder read lazily, or a param tree in memory.

A source hands out one part of the model at a time, as NumPy arrays in their stored dtype; from
a folder they are views of the memory-mapped shards, so nothing is read before it is used.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from converters import table_for
from converters.files import Reader, lone_torch_file, open_checkpoint
from converters.rules import Placed, check_shape, insert
from converters.sam_names import config_of
from icp_jax.errors import InputError
from icp_jax.models import make_family
from icp_jax.streaming.background import in_threads

Params = dict[str, Any]


def read_config(folder: Path, quantized: bool = False) -> dict[str, Any]:
    """`config.json` as a dict. Raises InputError where it is absent, unreadable or `quantized`
    weights are not wanted.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} has no config.json: it is not a Hugging Face model folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object")
    if config.get("quantization_config") is not None and not quantized:
        raise InputError(
            f"{folder} is already quantized: give the unquantized checkpoint (of our own exports, "
            "the one written without --quant.packed)"
        )
    return config


def describe(path: Path, reader: Reader, quantized: bool = False) -> dict[str, Any]:
    """The config of a checkpoint: its `config.json`, or what the shapes of a lone `.pth` tell."""
    return _told(reader) if _alone(path) else read_config(path, quantized)


def _alone(path: Path) -> bool:
    """Whether a `.pth` lies there without a config."""
    return lone_torch_file(path) is not None and not (path / "config.json").is_file()


def _told(reader: Reader) -> dict[str, Any]:
    """The config that shapes tell."""
    return config_of({name: reader.shape(name) for name in reader.names()})


def part_of(placed: Placed) -> tuple[str, ...]:
    """('embed',), ('head',) or ('blocks', t): what of the model a tensor belongs to."""
    return placed.path[:2] if placed.path[0] == "blocks" else placed.path[:1]


def all_finite(tensor: np.ndarray) -> bool:
    """Whether there is no NaN and no infinity; a part at a time, so that little memory is taken."""
    flat = tensor.reshape(-1)
    if flat.dtype == ml_dtypes.bfloat16:  # its exponent's bits all set; NumPy would convert each
        flat, exponent = flat.view(np.uint16), np.uint16(0x7F80)
        return not any(np.any((part & exponent) == exponent) for part in parts(flat))
    return flat.dtype.kind != "f" or all(np.isfinite(part).all() for part in parts(flat))


def parts(flat: np.ndarray, size: int = 1 << 20) -> Iterator[np.ndarray]:
    """`flat` in pieces of `size`, so that what is made of one is small."""
    return (flat[start : start + size] for start in range(0, len(flat), size))


def _not_finite(name: str) -> InputError:
    return InputError(f"tensor {name!r} has values that are not finite: NaN or inf")


class FolderSource:
    """A Hugging Face folder, or Meta's `.pth` file, alone or in a folder: checked whole by name
    and shape, read part by part.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        config = None if _alone(self.folder) else read_config(self.folder)
        if config is not None:
            make_family(config)  # says what is wrong before weights are opened
        self.reader: Reader = open_checkpoint(self.folder)
        try:
            self._place(_told(self.reader) if config is None else config)
        except BaseException:
            self.reader.close()
            raise

    def _place(self, config: dict[str, Any]) -> None:
        self.config, self.family = config, make_family(config)
        table = table_for(config["model_type"])
        self.placed = table.place(config, self.reader.names())
        self._finite = False
        self._parts: dict[tuple[str, ...], list[Placed]] = defaultdict(list)
        for rule in self.placed:
            check_shape(rule, self.reader.shape(rule.name))
            self._parts[part_of(rule)].append(rule)

    def _read(self, part: tuple[str, ...]) -> Params:
        tree: Params = {}
        for rule in self._parts[part]:
            tensor = self.reader.read(rule.name)
            if not (self._finite or all_finite(tensor)):
                raise _not_finite(rule.name)
            insert(tree, rule.path[len(part) :], rule.to_tree(tensor))
        return tree

    def check_finite(self) -> None:
        """Look through all weights, once for all that is read later.

        Raises InputError for NaN or infinity, naming the tensor.
        """

        def finite(rule: Placed) -> bool:
            good = all_finite(self.reader.read(rule.name))
            self.reader.forget()
            return good

        rules = [rule for part in self._parts.values() for rule in part]
        for rule, good in zip(rules, in_threads(finite, rules), strict=True):
            if not good:
                raise _not_finite(rule.name)
        self._finite = True

    def embed(self) -> Params:
        return self._read(("embed",))

    def head(self) -> Params:
        return self._read(("head",))

    def block(self, t: int) -> Params:
        """Block t; the next one is read ahead."""
        params = self._read(("blocks", str(t)))
        self.reader.fetch(rule.name for rule in self._parts.get(("blocks", str(t + 1)), ()))
        return params

    def forget(self) -> None:
        """Give back the memory of the blocks read; they stay good, and are read again if used."""
        self.reader.forget()

    def shapes(self, t: int) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of every prunable linear of block t."""
        linears = {spec.name for spec in self.family.linears}
        return {
            rule.path[2]: (rule.shape[1], rule.shape[0])
            for rule in self._parts[("blocks", str(t))]
            if rule.path[2] in linears and rule.path[3] == "kernel"
        }

    def dtype(self, name: str) -> np.dtype:
        """What a tensor is stored in."""
        return self.reader.dtype(name)

    def tree(self) -> Params:
        """The whole param tree."""
        blocks = {str(t): self.block(t) for t in range(self.family.n_blocks)}
        others = {name: self._read((name,)) for name, *_ in self._parts if name != "blocks"}
        return {"embed": {}, "head": {}, **others, "blocks": blocks}

    def weights(self) -> dict[str, Path]:
        """The files that hold the checkpoint's weights, by name; no others that lie beside them."""
        return self.reader.files

    def close(self) -> None:
        self.reader.close()
