"""The files of a check: one JSON a stage, each written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write(path: Path, record: dict[str, Any]) -> None:
    """Write JSON so that no reader, and no later look, finds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(new, path)


def read(path: Path) -> dict[str, Any]:
    """A stage's record; empty where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}
