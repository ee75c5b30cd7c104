"""Read a corpus from local files: text, JSON, NumPy, Parquet, and saved `datasets` folders.

The format is detected from the first bytes, then from the file name's suffix.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.rules import first_line
from icp_jax.data.corpus import (
    CHAT_KEY,
    MASK_KEY,
    TEXT_KEYS,
    TOKEN_KEYS,
    Corpus,
    checked_text,
    corpus_of,
    ids_of,
)
from icp_jax.data.named import HUB, from_hub
from icp_jax.errors import InputError

EXPECTED = "expected .txt, .jsonl, .json (also .gz), .npy, .parquet or a datasets folder"
TEXTS = (".txt", ".text", ".md", ".raw", ".tokens")
JSONS = (".jsonl", ".json", ".ndjson")
PACKED: dict[str, tuple[bytes, Callable[..., Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.open),
    ".bz2": (b"BZh", bz2.open),
    ".xz": (b"\xfd7zXZ", lzma.open),
}
# Splits for calibration and evaluation; the first existing one is used.
SPLITS = {False: ("train",), True: ("test", "validation", "valid", "val", "dev")}


def load_corpus(data: str, evaluation: bool = False) -> Corpus:
    """Load a corpus by name or path. Raises InputError if it is missing or unreadable."""
    if data in HUB:
        return from_hub(data, evaluation)
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            return _saved(path, evaluation)
        if not path.exists():
            raise InputError(
                f"no data {data!r}: give {', '.join(HUB)} or an existing file or folder"
            )
        return _file(path)
    except UnicodeDecodeError:
        raise InputError(f"{data} is not UTF-8 text: convert it to UTF-8") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{data} cannot be read: {first_line(error)}") from None


def _file(path: Path) -> Corpus:
    ends = [end.lower() for end in path.suffixes[-2:]]
    with path.open("rb") as file:
        start = file.read(8)
    packed = next((end for end, (magic, _) in PACKED.items() if start.startswith(magic)), None)
    named = ends.pop() if ends and ends[-1] in PACKED else None
    if named and packed is None:
        raise InputError(f"{path} cannot be read: it is not a {named} file; rename it")
    if start.startswith(b"\x93NUMPY") or ends[-1:] == [".npy"]:
        return _read_npy(path)
    if start.startswith(b"PAR1"):
        import datasets
        import pyarrow.parquet

        return _columns(path, datasets.Dataset(pyarrow.parquet.read_table(path)))
    end = ends[-1] if ends else ""
    if end not in ("", *TEXTS, *JSONS):
        raise InputError(f"{path}: {EXPECTED}")
    opened = PACKED[packed][1] if packed else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        text = file.read()
    if end in JSONS or (not end and text.lstrip().startswith('{"')):
        return corpus_of(str(path), _json_rows(path, text))
    return Corpus(path.name, [checked_text(path, text)])


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """(place, row) pairs of JSON lines or of a JSON array."""
    whole = text.lstrip()[:2]
    if whole[:1] == "[" and not whole[1:].isdigit():
        try:
            rows = json.loads(text)
        except ValueError:
            rows = None
        if isinstance(rows, list) and any(not isinstance(row, int) for row in rows):
            yield from ((f"{path} row {number}", row) for number, row in enumerate(rows, 1))
            return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{path} line {number}", json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{path} line {number} is not JSON: fix or remove it") from None


def _read_npy(path: Path) -> Corpus:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path} is not an array of token ids: {first_line(error)}") from None
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2):
        raise InputError(f"{path} is not an array of token ids: save one array [T] or [N, T]")
    rows = [ids_of(path, row) for row in np.atleast_2d(array)]
    return Corpus(path.name, rows, rows=array.ndim == 2)


def _saved(path: Path, evaluation: bool) -> Corpus:
    import datasets

    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow and datasets raise unrelated types
        if isinstance(error, IndexError) and any(path.rglob("state.json")):
            raise InputError(f"{path} has a dataset without rows: give other data") from None
        raise InputError(
            f"{path} is not a folder written by datasets.save_to_disk: {first_line(error)}"
        ) from None
    if isinstance(rows, datasets.DatasetDict):
        split = next((name for name in SPLITS[evaluation] if name in rows), None)
        if split is None:
            raise InputError(
                f"{path} has no split {' or '.join(SPLITS[evaluation][:2])}, "
                f"only {', '.join(rows)}: give a split's folder, such as "
                f"{path}/{next(iter(rows), '')}"
            )
        return _columns(path / split, rows[split])
    return _columns(path, rows)


def _columns(path: Path, rows: Any) -> Corpus:
    """The texts or the unmasked tokens of a `datasets.Dataset`."""
    names = rows.column_names
    wanted = [key for key in (*TEXT_KEYS, *TOKEN_KEYS, CHAT_KEY) if key in names][:1]
    if not wanted:
        raise InputError(f"{path} has columns {names}: rename one to text, input_ids or messages")
    if wanted[0] in TOKEN_KEYS and MASK_KEY in names:
        wanted.append(MASK_KEY)
    chosen = rows.select_columns(wanted)
    if getattr(chosen.features[wanted[0]], "dtype", "") in ("string", "large_string"):
        column = chosen.with_format("arrow")[:][wanted[0]] if len(chosen) else []
        return _strings(path, column)
    plain = chosen.with_format(None)
    return corpus_of(str(path), ((f"{path} row {k}", row) for k, row in enumerate(plain, 1)))


class Strings(Sequence[str]):
    """A sequence of texts that are read from an Arrow column on access."""

    def __init__(self, column: Any):
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, k: Any) -> Any:
        return self.column[k].as_py()


def _strings(path: Path, column: Any) -> Corpus:
    """A corpus of an Arrow column of strings; drops nulls as `corpus_of` does."""
    if not len(column):
        return corpus_of(str(path), ())
    import pyarrow.compute as pc

    there = column.drop_null()
    blank = pc.sum(pc.equal(there, "")).as_py() or 0
    if blank == len(there):
        return corpus_of(str(path), ((path, None) for _ in range(len(column))))
    return Corpus(path.name, Strings(there), empty=column.null_count + blank)
