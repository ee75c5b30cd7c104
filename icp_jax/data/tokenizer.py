"""Tokenize text with the model's own tokenizer."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import copy_other_files, is_gguf
from converters.rules import first_line
from icp_jax.data import hub, llama2c
from icp_jax.data.chat import Chat, as_text
from icp_jax.data.corpus import Piece
from icp_jax.data.hub_errors import SHOWN
from icp_jax.errors import InputError
from icp_jax.phases import TOKENIZE, Progress

CHUNK = 1 << 18  # characters per chunk of a long text
OVERLAP = 1 << 11  # characters shared by neighbouring chunks
SAME = 8  # equal tokens required on either side of a joint
PATIENCE = 1.0  # seconds before progress is shown
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
INSTEAD = "give token ids (.npy, .jsonl) instead of text"


class Slowly:
    """A progress callback that stays silent for the first PATIENCE seconds."""

    def __init__(self, tick: Progress):
        self.tick, self.start = tick, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.start > PATIENCE:
            self.tick(-1, TOKENIZE.name, done, total, None)


class Encoder:
    """Encodes texts as token ids. The tokenizer is loaded on the first text.

    progress: called with block -1 while a long text is tokenized.
    """

    def __init__(self, folder: Path, vocab_size: int, progress: Progress = lambda *event: None):
        self.folder, self.vocab_size, self.progress = folder, vocab_size, progress
        self._tokenizer: Any = None

    def __call__(self, piece: Piece) -> np.ndarray:
        """Token ids `[T]` int32. Raises InputError for ids outside the vocabulary."""
        ids = self._encode(piece) if isinstance(piece, str) else piece
        if isinstance(ids, Chat):
            ids = self._chat(ids)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise InputError(
                f"token ids range from {ids.min()} to {ids.max()}, outside the model's "
                f"vocabulary of {self.vocab_size}: use ids of this model's tokenizer"
            )
        return ids.astype(np.int32)

    def _chat(self, chat: Chat) -> np.ndarray:
        """A chat in the format of the tokenizer's template, which has the special tokens."""
        self._tokenizer = self._tokenizer or load_tokenizer(self.folder)
        text = as_text(self._tokenizer, chat.messages, chat.where)
        return _ids(self._tokenizer, text, add_special_tokens=False)

    def _encode(self, text: str) -> np.ndarray:
        self._tokenizer = self._tokenizer or load_tokenizer(self.folder)
        if len(text) > 2 * CHUNK and self._tokenizer.is_fast:
            ids = in_chunks(self._tokenizer, text, Slowly(self.progress))
            if ids is not None:
                return ids
        return _ids(self._tokenizer, text)


def _ids(tokenizer: Any, text: str, **options: Any) -> np.ndarray:
    return np.asarray(tokenizer(text, verbose=False, **options)["input_ids"], np.int64)


def in_chunks(tokenizer: Any, text: str, tick: Any) -> np.ndarray | None:
    """Tokenize a text in overlapping chunks; the ids equal those of the whole text.

    Neighbouring chunks are joined where both start a token and agree on the tokens around it.
    Returns None if there is no such place. tokenizer: a fast one.
    """
    bare, dressed = (_ids(tokenizer, "a", add_special_tokens=s).tolist() for s in (False, True))
    at = next((k for k in range(len(dressed)) if dressed[k : k + len(bare)] == bare), None)
    if at is None:
        return None
    found, ids, starts, begin = [dressed[:at]], np.empty(0, np.int64), np.empty(0, np.int64), 0
    while begin + OVERLAP < len(text) or not begin:
        end = min(begin + CHUNK, len(text))
        made = tokenizer(
            text[begin:end], verbose=False, add_special_tokens=False, return_offsets_mapping=True
        )
        new = np.asarray(made["input_ids"], np.int64)
        new_starts = np.asarray(made["offset_mapping"], np.int64).reshape(-1, 2)[:, 0] + begin
        if begin:
            joint = _joint(ids, starts, new, new_starts, begin + OVERLAP // 2)
            if joint is None:
                return None
            found.append(ids[: joint[0]])
            new, new_starts = new[joint[1] :], new_starts[joint[1] :]
        ids, starts = new, new_starts
        tick(end, len(text))
        begin = end - OVERLAP
    return np.concatenate([*found, ids, dressed[at + len(bare) :]]).astype(np.int64)


def _joint(left, left_starts, right, right_starts, near: int) -> tuple[int, int] | None:
    """(i, j) such that `left[:i]` followed by `right[j:]` is the joined sequence, or None."""
    for place in np.intersect1d(left_starts, right_starts):
        i, j = np.searchsorted(left_starts, place), np.searchsorted(right_starts, place)
        around = slice(i - SAME, i + SAME), slice(j - SAME, j + SAME)
        if (
            place >= near
            and min(i, j) >= SAME
            and np.array_equal(left[around[0]], right[around[1]])
        ):
            return int(i), int(j)
    return None


def load_tokenizer(folder: Path, instead: str = INSTEAD) -> Any:
    """Load the tokenizer of a folder, never running the folder's own code.

    It may be one of llama2.c. instead: what to do without one, for the message. Raises InputError.
    """
    from transformers import AutoTokenizer

    if own := _of_llama2c(folder):
        return llama2c.load(own)
    try:
        with hub.quiet(), readable(folder) as place:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
            raise ValueError("no vocabulary")  # transformers loads an empty folder without error
    except Exception as error:  # transformers raises unrelated types
        raise InputError(f"{folder} {_fault(folder, error)}; {instead}") from None
    return tokenizer


def _of_llama2c(folder: Path) -> Path | None:
    """The folder's tokenizer of llama2.c, if it has no other."""
    if not folder.is_dir() or any((folder / name).exists() for name in TOKENIZERS):
        return None
    return llama2c.find(folder)


def _fault(folder: Path, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "has a tokenizer that needs its own code, which is never run"
    alone = (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()
    lacking = [n for n in ("sentencepiece", "google.protobuf") if not _installed(n)]
    if alone and lacking:
        return (
            "has only a SentencePiece tokenizer (tokenizer.model), which needs "
            "pip install sentencepiece protobuf"
        )
    return f"has no tokenizer that can be loaded ({first_line(error)[:SHOWN]})"


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[Path]:
    """Yield a folder that transformers can read.

    If JSON files start with a byte order mark, it is a copy of the small files without the marks.
    For a `.gguf` file it is made from the file.
    """
    if is_gguf(folder):
        with tempfile.TemporaryDirectory() as name:
            copy_other_files(folder, Path(name))
            yield Path(name)
        return
    small = [p for p in folder.iterdir() if p.suffix in (".json", ".txt", ".model", ".jinja")]
    marked = [p for p in small if p.suffix == ".json" and _has_mark(p)]
    if not marked:
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        for path in small:
            shutil.copyfile(path, Path(name) / path.name)
        for path in marked:
            record = json.loads(path.read_text(encoding="utf-8-sig"))
            (Path(name) / path.name).write_text(json.dumps(record), encoding="utf-8")
        yield Path(name)


def _has_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3) == b"\xef\xbb\xbf"


def vocabulary(config: Mapping[str, Any]) -> int:
    """The size of the vocabulary. Raises InputError for a model that does not read text."""
    if "vocab_size" not in config:
        raise InputError(
            f"model type {config.get('model_type')!r} does not read text: give a language model"
        )
    return int(config["vocab_size"])
