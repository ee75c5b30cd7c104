"""A model source that reads a checkpoint folder lazily.

It returns one part of the model at a time, as NumPy arrays in their stored dtype. These are views
of memory-mapped shards, so nothing is read before it is used.
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
from converters.files import Reader, is_gguf, lone_torch_file, open_checkpoint
from converters.packed_forms import PLAIN, Levels, parse_form
from converters.packed_reader import PackedReader
from converters.rules import Placed, check_shape, insert
from converters.sam_names import config_of
from icp_jax.errors import InputError
from icp_jax.models import make_family
from icp_jax.streaming.background import in_threads
from icp_jax.streaming.unpacking import Packed

Params = dict[str, Any]


def read_config(folder: Path, quantized: bool = False) -> dict[str, Any]:
    """Read `config.json` as a dict. quantized: accept a quantized checkpoint. Raises InputError."""
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
            f"{folder} is already quantized: pass the unquantized checkpoint "
            "(an export of icp-jax must be written without quant.packed)"
        )
    return config


def describe(path: Path, reader: Reader, quantized: bool = False) -> dict[str, Any]:
    """The config of a checkpoint: its `config.json`, or what a lone `.pth` or `.gguf` tells."""
    return _told(reader) if alone(path) else read_config(path, quantized)


def alone(path: Path) -> bool:
    """Whether the path is a `.gguf` file, or is or holds a `.pth` file, without a config."""
    if is_gguf(path):
        return True
    return lone_torch_file(path) is not None and not (path / "config.json").is_file()


def _told(reader: Reader) -> dict[str, Any]:
    """The config that the reader has from its file, or derived from the tensor shapes."""
    if isinstance(own := getattr(reader, "config", None), dict):
        return own
    return config_of({name: reader.shape(name) for name in reader.names()})


def part_of(placed: Placed) -> tuple[str, ...]:
    """The part of the model that a tensor belongs to: ('embed',), ('head',) or ('blocks', t)."""
    return placed.path[:2] if placed.path[0] == "blocks" else placed.path[:1]


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


class FolderSource:
    """A Hugging Face folder, a `.gguf` file, or a `.pth` file of Meta's, alone or in a folder.

    reader: of its weights. Default: the one for its files.
    Names and shapes of all tensors are checked at once; weights are read part by part.
    """

    def __init__(self, folder: str | Path, reader: Reader | None = None):
        self.folder = Path(folder)
        config = None if alone(self.folder) else read_config(self.folder)
        if config is not None:
            make_family(config)  # check the config before opening the weights
        self.reader: Reader = reader or open_checkpoint(self.folder)
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

    def _read(self, part: tuple[str, ...], packed: bool = False) -> Params:
        """packed: leave kernels packed that are packed in the file."""
        tree: Params = {}
        for rule in self._parts[part]:
            leaf = self._packed(rule) if packed and rule.transpose else None
            tensor = self.reader.read(rule.name) if leaf is None else leaf.nonzeros
            if not (self._finite or all_finite(tensor)):
                raise not_finite(rule.name)
            insert(tree, rule.path[len(part) :], rule.to_tree(tensor) if leaf is None else leaf)
        return tree

    def _packed(self, rule: Placed) -> Packed | None:
        """A packed matrix; None if it is not packed."""
        if not isinstance(self.reader, PackedReader):
            return None
        form = self.reader.stored(rule.name).form
        if form == PLAIN or isinstance(parse_form(form), Levels):
            return None
        return Packed.of(self.reader.parts(rule.name), rule.shape, form)

    def check_finite(self) -> None:
        """Check all weights now, so that later reads skip the check.

        Raises InputError, naming the tensor, for NaN or infinity.
        """

        def finite(rule: Placed) -> bool:
            good = all_finite(self.reader.read(rule.name))
            self.reader.forget()
            return good

        rules = [rule for part in self._parts.values() for rule in part]
        for rule, good in zip(rules, in_threads(finite, rules), strict=True):
            if not good:
                raise not_finite(rule.name)
        self._finite = True

    def embed(self) -> Params:
        return self._read(("embed",))

    def head(self) -> Params:
        return self._read(("head",))

    def block(self, t: int) -> Params:
        """Read block t, and prefetch the next one."""
        return self._block(t, packed=False)

    def packed_block(self, t: int) -> Params:
        """Block t, with the kernels that the file has packed as `Packed` leaves."""
        return self._block(t, packed=True)

    def _block(self, t: int, packed: bool) -> Params:
        params = self._read(("blocks", str(t)), packed)
        self.reader.fetch(rule.name for rule in self._parts.get(("blocks", str(t + 1)), ()))
        return params

    def forget(self) -> None:
        """Free the memory of the blocks read; their arrays stay valid and are reread on use."""
        self.reader.forget()

    def shapes(self, t: int) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each prunable linear of block t."""
        linears = {spec.name for spec in self.family.linears}
        return {
            rule.path[2]: (rule.shape[1], rule.shape[0])
            for rule in self._parts[("blocks", str(t))]
            if rule.path[2] in linears and rule.path[3] == "kernel"
        }

    def dtype(self, name: str) -> np.dtype:
        """The stored dtype of a tensor."""
        return self.reader.dtype(name)

    def tree(self) -> Params:
        """The whole param tree."""
        blocks = {str(t): self.block(t) for t in range(self.family.n_blocks)}
        others = {name: self._read((name,)) for name, *_ in self._parts if name != "blocks"}
        return {"embed": {}, "head": {}, **others, "blocks": blocks}

    def weights(self) -> dict[str, Path]:
        """The files with the checkpoint's weights, by name, without other files of the folder."""
        return self.reader.files

    def close(self) -> None:
        self.reader.close()
