"""The config of a checkpoint: its `config.json`, or what a file without one tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from converters.files import Reader, is_gguf, lone_torch_file
from converters.sam_names import config_of
from icp_jax.errors import InputError


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
    return told(reader) if alone(path) else read_config(path, quantized)


def alone(path: Path) -> bool:
    """Whether the path is a `.gguf` file, or is or holds a `.pth` file, without a config."""
    if is_gguf(path):
        return True
    return lone_torch_file(path) is not None and not (path / "config.json").is_file()


def told(reader: Reader) -> dict[str, Any]:
    """The config that the reader has from its file, or derived from the tensor shapes."""
    if isinstance(own := getattr(reader, "config", None), dict):
        return own
    return config_of({name: reader.shape(name) for name in reader.names()})
