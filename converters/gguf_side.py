"""The files of a Hugging Face folder beside its weights, for a model in GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from converters.gguf_config import DTYPE, config_of, generation_config
from converters.gguf_metadata import Gguf, read_gguf
from converters.gguf_tokenizer import token, tokenizer_of
from converters.names import create

SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
TEMPLATE = "tokenizer.chat_template"


def side_files(path: Path, dtype: np.dtype = DTYPE) -> dict[str, str]:
    """The texts of config and tokenizer files by name. Raises ConversionError."""
    model = read_gguf(path)
    config = config_of(model, dtype)
    texts = {
        "config.json": _json(config),
        "generation_config.json": _json(generation_config(model)),
    }
    if (tokenizer := tokenizer_of(model)) is not None:
        texts["tokenizer.json"] = tokenizer.to_str() + "\n"
        texts["tokenizer_config.json"] = _json(_tokenizer_config(model, config))
    return texts


def write_side_files(path: Path, target: Path, dtype: np.dtype = DTYPE) -> None:
    """Write `side_files` into a folder."""
    for name, text in side_files(path, dtype).items():
        with create(target, name, path) as file:
            file.write(text.encode())


def _tokenizer_config(model: Gguf, config: dict[str, Any]) -> dict[str, Any]:
    special = {key: token(model, name) for key, name in SPECIAL.items()}
    chat = model.metadata.get(TEMPLATE)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: text for key, text in special.items() if text is not None},
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        **({} if chat is None else {"chat_template": chat}),
    }


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
