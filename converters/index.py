"""The index of a sharded checkpoint: the file that holds each tensor."""

from __future__ import annotations

import json
from typing import Any

from converters.layout import Layout
from converters.names import INDEX, shown
from converters.rules import ConversionError


def read_index(text: str, origin: object) -> dict[str, Any]:
    """Parse a checkpoint index and check its `weight_map`. Raises ConversionError."""
    try:
        index = json.loads(text.removeprefix("\ufeff"))
        if not isinstance(index["weight_map"], dict):
            raise TypeError("weight_map is not an object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConversionError(f"{origin} is not a checkpoint index: {shown(str(error))}") from None
    return index


def right_index(layout: Layout) -> str | None:
    """The text of a layout's index: the source's text if it is right, else a corrected one.

    Raises ConversionError if the source's text is not an index.
    """
    if layout.index is None:
        return None
    index = read_index(layout.index, INDEX)
    total = sum(e.nbytes for e in layout.entries.values())
    weight_map = {name: entry.shard for name, entry in layout.entries.items()}
    given = index.get("metadata")
    metadata = given if isinstance(given, dict) else {}
    if index["weight_map"] == weight_map and metadata.get("total_size") == total:
        return layout.index
    index |= {"metadata": {**metadata, "total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2) + "\n"
