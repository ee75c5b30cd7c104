"""The index of a checkpoint in shards: which file holds which tensor."""

from __future__ import annotations

import json
from typing import Any

from converters.layout import Layout
from converters.names import INDEX, shown
from converters.rules import ConversionError


def read_index(text: str, origin: object) -> dict[str, Any]:
    """A checkpoint's index, whose `weight_map` is a dict. Raises ConversionError."""
    try:
        index = json.loads(text.removeprefix("\ufeff"))
        if not isinstance(index["weight_map"], dict):
            raise TypeError("weight_map is no object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConversionError(f"{origin} is not a checkpoint index: {shown(str(error))}") from None
    return index


def right_index(layout: Layout) -> str | None:
    """The index of a layout: the source's text, unless it lists other tensors, or other bytes.

    Raises ConversionError for a text that is no index.
    """
    if layout.index is None:
        return None
    index = read_index(layout.index, INDEX)
    total = sum(e.nbytes for e in layout.entries.values())
    weight_map = {name: entry.shard for name, entry in layout.entries.items()}
    told = index.get("metadata")
    metadata = told if isinstance(told, dict) else {}
    if index["weight_map"] == weight_map and metadata.get("total_size") == total:
        return layout.index
    index |= {"metadata": {**metadata, "total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2) + "\n"
