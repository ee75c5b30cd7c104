"""How a language model goes on from a prompt: its likeliest tokens, as one text."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from icp_jax.data.tokenizer import load_tokenizer
from icp_jax.errors import InputError
from icp_jax.generation.generate import generate, rows_of
from icp_jax.streaming.source import FolderSource

WRITTEN = 40  # new tokens


def check_prompt(source: FolderSource, prompt: str) -> None:
    """Raise InputError if the model cannot go on from the prompt."""
    if source.family.kind != "text":
        raise InputError("only a language model writes text: leave out --report-text")
    ids = load_tokenizer(source.folder)(prompt, verbose=False)["input_ids"]
    rows_of(source, [np.asarray(ids, np.int64)], 1)


def continued(model: Path, prompt: str) -> str:
    """What a model writes after a prompt. Raises InputError."""
    tokenizer = load_tokenizer(model)
    with closing(FolderSource(model)) as source:
        room = source.family.context
        ids = np.asarray(tokenizer(prompt, verbose=False)["input_ids"], np.int32)[-room // 2 :]
        new = min(WRITTEN, room - len(ids))
        made = generate(source, [ids], max_new_tokens=new, eos=tokenizer.eos_token_id)
    return str(tokenizer.decode(made[0].tolist(), skip_special_tokens=True)).strip()
