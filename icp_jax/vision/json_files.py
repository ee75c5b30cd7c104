"""Read small JSON files of data sets and models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.rules import first_line
from icp_jax.errors import InputError


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a file that holds a JSON object. Raises InputError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"{path} cannot be read as JSON: {reason}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} is not a JSON object")
    return record
