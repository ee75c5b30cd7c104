"""Small JSON files that come with images and models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.rules import first_line
from icp_jax.errors import InputError


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"{path} is not JSON that can be read: {reason}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path} is not a JSON object")
    return record
