"""A model source that reads a checkpoint folder lazily.

It returns one part of the model at a time, as NumPy arrays in their stored dtype. These are views
of memory-mapped shards, so nothing is read before it is used.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from converters import table_for
from converters.files import Reader, open_checkpoint
from converters.packed_forms import PLAIN, Levels, parse_form
from converters.packed_reader import PackedReader
from converters.rules import Placed, check_shape, insert
from icp_jax.models import make_family
from icp_jax.streaming.background import in_threads
from icp_jax.streaming.finite import all_finite, not_finite
from icp_jax.streaming.model_config import alone, read_config, told
from icp_jax.streaming.unpacking import Packed

Params = dict[str, Any]


def part_of(placed: Placed) -> tuple[str, ...]:
    """The part of the model that a tensor belongs to: ('embed',), ('head',) or ('blocks', t)."""
    return placed.path[:2] if placed.path[0] == "blocks" else placed.path[:1]


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
            self._place(told(self.reader) if config is None else config)
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
