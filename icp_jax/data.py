"""Calibration and evaluation tokens: from hub datasets, local text, or ready token ids.

A corpus is either one running text or a set of documents. Calibration windows are drawn at
random: from a text anywhere, from documents out of those longer than a window (where there are
none, the documents are joined and treated as a text). Evaluation joins everything and cuts it
into windows that do not overlap.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.rules import first_line
from icp_jax.config import CalibrationConfig
from icp_jax.errors import InputError

GAP = "\n\n"
MAX_WINDOW = 2048  # the field's window, where the model's context is longer
C4_TRAIN = "en/c4-train.00000-of-01024.json.gz"
C4_VALIDATION = "en/c4-validation.00000-of-00008.json.gz"
Piece = str | np.ndarray  # a text, or its token ids


@dataclass(frozen=True)
class Corpus:
    """pieces: documents, or a single running text; gap: what joins them; limit: windows read."""

    name: str
    pieces: Sequence[Piece]
    gap: str = GAP
    limit: int | None = None


def _from_hub(name: str, evaluation: bool) -> Corpus:
    """wikitext2, ptb or c4 as the pruning papers read them."""
    import datasets

    try:
        if name == "wikitext2":
            split = "test" if evaluation else "train"
            rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)
            return Corpus(name, [(GAP if evaluation else " ").join(rows["text"])])
        if name == "ptb":
            rows = datasets.load_dataset(
                "ptb-text-only/ptb_text_only",
                "penn_treebank",
                split="test" if evaluation else "train",
                revision="refs/convert/parquet",
            )
            return Corpus(name, [" ".join(rows["sentence"])])
        files = {"validation": C4_VALIDATION} if evaluation else {"train": C4_TRAIN}
        rows = datasets.load_dataset("allenai/c4", data_files=files, split=next(iter(files)))
        if evaluation:
            return Corpus(name, [" ".join(rows[:1100]["text"])], limit=256)
        return Corpus(name, rows["text"])
    except Exception as error:  # no network, a moved dataset: the library's errors share no base
        raise InputError(
            f"dataset {name} could not be loaded ({first_line(error)}); "
            "give a local .txt, .jsonl, .npy or Arrow folder instead"
        ) from None


HUB = ("c4", "wikitext2", "ptb")


def load_corpus(data: str, evaluation: bool = False) -> Corpus:
    """A corpus by name or path. Raises InputError for what is not there or cannot be read."""
    if data in HUB:
        return _from_hub(data, evaluation)
    path = Path(data).expanduser()
    if not path.exists():
        raise InputError(f"no data {data!r}: give {', '.join(HUB)} or an existing file or folder")
    suffixes = path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]
    kind = "/" if path.is_dir() else "".join(suffixes).removesuffix(".gz")
    readers: dict[str, Callable[[Path], Corpus]] = {
        "/": _read_arrow,
        ".txt": lambda p: Corpus(p.name, [p.read_text(encoding="utf-8")]),
        ".jsonl": _read_jsonl,
        ".npy": _read_npy,
    }
    if kind not in readers:
        raise InputError(f"{data}: expected .txt, .jsonl, .jsonl.gz, .npy or a datasets folder")
    try:
        return readers[kind](path)
    except UnicodeDecodeError:
        raise InputError(f"{data} is not UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{data} cannot be read: {first_line(error)}") from None


def _read_arrow(path: Path) -> Corpus:
    import datasets

    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow's and datasets' own kinds
        raise InputError(
            f"{path} is not a folder that datasets saved: {first_line(error)}"
        ) from None
    if isinstance(rows, datasets.DatasetDict):
        rows = rows["train"] if "train" in rows else next(iter(rows.values()))
    for column in ("text", "sentence"):
        if column in rows.column_names:
            return Corpus(path.name, rows[column])
    for column in TOKEN_KEYS:
        if column in rows.column_names:
            return Corpus(path.name, [_ids(r, path) for r in rows[column]])
    raise InputError(f"{path} has no column text or input_ids, only {rows.column_names}")


TOKEN_KEYS = ("input_ids", "tokens")


def _read_jsonl(path: Path) -> Corpus:
    opened = gzip.open if path.suffix == ".gz" else open
    pieces: list[Piece] = []
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise InputError(f"{path} line {number} is not JSON") from None
            if not isinstance(row, dict):
                row = {"input_ids": row}
            if isinstance(row.get("text"), str):
                pieces.append(row["text"])
            else:
                found = next((row[k] for k in TOKEN_KEYS if k in row), None)
                if found is None:
                    raise InputError(f"{path} line {number} has neither 'text' nor 'input_ids'")
                pieces.append(_ids(found, f"{path} line {number}"))
    return Corpus(path.name, pieces)


def _read_npy(path: Path) -> Corpus:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path} is not an array of token ids: {first_line(error)}") from None
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2):
        raise InputError(f"{path} is not an array of token ids, [T] or [N, T]")
    return Corpus(path.name, [_ids(row, path) for row in np.atleast_2d(array)])


def _ids(values: Any, where: Any) -> np.ndarray:
    try:
        ids = np.asarray(values)
    except ValueError:
        ids = np.empty((0, 0))
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or ids.size == 0):
        raise InputError(f"{where}: expected a flat list of integer token ids")
    return ids.astype(np.int64)


class Encoder:
    """Text to ids by the model's own tokenizer, loaded when the first text comes."""

    def __init__(self, folder: Path, vocab_size: int):
        self.folder, self.vocab_size = folder, vocab_size
        self._tokenizer: Any = None

    def __call__(self, piece: Piece) -> np.ndarray:
        """Token ids, int32, checked against the vocabulary."""
        ids = self._encode(piece) if isinstance(piece, str) else piece
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise InputError(
                f"token ids reach from {ids.min()} to {ids.max()}, "
                f"the model has a vocabulary of {self.vocab_size}"
            )
        return ids.astype(np.int32)

    def _load(self) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
            if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
                raise ValueError("no vocabulary")  # what transformers makes of no files at all
        except Exception as error:  # the library's errors share no base
            raise InputError(
                f"{self.folder} has no tokenizer that can be loaded "
                f"({first_line(error)}); give token ids (.npy, .jsonl) instead of text"
            ) from None
        return tokenizer

    def _encode(self, text: str) -> np.ndarray:
        self._tokenizer = self._tokenizer or self._load()
        return np.asarray(self._tokenizer(text, verbose=False)["input_ids"], np.int64)


def vocabulary(config: Mapping[str, Any]) -> int:
    """The vocabulary's size. Raises InputError for a model that reads no text."""
    if "vocab_size" not in config:
        raise InputError(
            f"model type {config.get('model_type')!r} reads no text: not supported here"
        )
    return int(config["vocab_size"])


def window(seq_len: int | None, context: int) -> int:
    """The window to use: as asked, or the model's context up to 2048. Raises InputError."""
    if seq_len is not None and not 2 <= seq_len <= context:
        raise InputError(f"seq-len must be from 2 to the model's context {context}, got {seq_len}")
    return seq_len or min(context, MAX_WINDOW)


def calibration_tokens(
    config: CalibrationConfig, context: int, encode: Callable[[Piece], np.ndarray]
) -> np.ndarray:
    """`[samples, T]` int32: random windows, drawn with config.seed."""
    length, corpus = window(config.seq_len, context), load_corpus(config.data)
    rng = np.random.default_rng(config.seed)

    def cut(ids: np.ndarray) -> np.ndarray:
        start = rng.integers(len(ids) - length + 1)
        return ids[start : start + length]

    if len(corpus.pieces) > 1:
        long: list[np.ndarray] = []
        for i in rng.permutation(len(corpus.pieces)):
            ids = encode(corpus.pieces[int(i)])
            if len(ids) > length:
                long.append(ids)
            if len(long) == config.samples:
                break
        if long:
            return np.stack([cut(long[k % len(long)]) for k in range(config.samples)])
    ids = joined(corpus, encode)
    if len(ids) < length:
        raise InputError(
            f"calibration data {config.data} has {len(ids)} tokens, shorter than one window of "
            f"{length}: give more text or a smaller --calibration.seq-len"
        )
    return np.stack([cut(ids) for _ in range(config.samples)])


def joined(corpus: Corpus, encode: Callable[[Piece], np.ndarray]) -> np.ndarray:
    """All of a corpus as one run of ids."""
    texts = [piece for piece in corpus.pieces if isinstance(piece, str)]
    if texts and len(texts) == len(corpus.pieces):
        return encode(corpus.gap.join(texts))
    return np.concatenate([encode(piece) for piece in corpus.pieces] or [np.empty(0, np.int32)])


def evaluation_windows(
    data: str, seq_len: int | None, context: int, encode: Callable[[Piece], np.ndarray]
) -> np.ndarray:
    """`[windows, T]` int32: the corpus joined and cut into windows that do not overlap."""
    length, corpus = window(seq_len, context), load_corpus(data, evaluation=True)
    ids = joined(corpus, encode)
    count = len(ids) // length
    if count == 0:
        raise InputError(
            f"evaluation data {data} has {len(ids)} tokens, shorter than one window of {length}: "
            "give more text or a smaller --seq-len"
        )
    count = min(count, corpus.limit or count)
    return ids[: count * length].reshape(count, length)
