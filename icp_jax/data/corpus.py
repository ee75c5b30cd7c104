"""A corpus: a single text, documents, or rows of token ids."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from icp_jax.data.chat import Chat, chat_of
from icp_jax.errors import InputError

GAP = "\n\n"
TEXT_KEYS = ("text", "sentence")
TOKEN_KEYS = ("input_ids", "tokens")
MASK_KEY = "attention_mask"
CHAT_KEY = "messages"
Piece = str | np.ndarray | Chat  # a text, its token ids, or a chat
Encode = Callable[[Piece], np.ndarray]
log = logging.getLogger("icp_jax")


@dataclass(frozen=True)
class Corpus:
    """A corpus before it is cut into windows."""

    name: str
    pieces: Sequence[Piece]  # documents, or a single text
    gap: str = GAP  # separator of joined pieces
    limit: int | None = None  # maximum number of evaluation windows
    rows: bool = False  # the pieces are rows of token ids
    empty: int = 0  # number of empty rows


def corpus_of(name: str, rows: Iterable[tuple[Any, Any]]) -> Corpus:
    """Build a corpus from `(where, row)` pairs.

    A row is a text, a list of ids, or an object that holds one of them or a chat's messages; chats
    and other rows do not mix. Rows that are null or without ids are dropped. Empty texts are kept,
    as in the usual join of WikiText's lines.
    Raises InputError with the place of a bad row.
    """
    pieces: list[Piece] = []
    empty = 0
    for where, row in rows:
        piece = _piece(where, row)
        if piece is not None and pieces and isinstance(piece, Chat) != isinstance(pieces[0], Chat):
            kind, others = ("a chat", "text or tokens")[:: 1 if isinstance(piece, Chat) else -1]
            raise InputError(f"{where} has {kind}, but rows before have {others}: split the data")
        empty += piece is None or not len(piece)
        if piece is not None and (isinstance(piece, str) or len(piece)):
            pieces.append(piece)
    if not any(map(len, pieces)):
        raise InputError(f"{name} has no text or tokens, only {empty} empty rows: give other data")
    return Corpus(
        name, pieces, rows=all(isinstance(piece, np.ndarray) for piece in pieces), empty=empty
    )


def _piece(where: Any, row: Any) -> Piece | None:
    if not isinstance(row, dict):
        row = {"text" if isinstance(row, str) else "input_ids": row}
    if row.get(CHAT_KEY) is not None:
        return chat_of(where, row[CHAT_KEY])
    text = next((row[key] for key in TEXT_KEYS if row.get(key) is not None), None)
    if isinstance(text, str):
        return checked_text(where, text)
    if text is not None:
        raise InputError(f"{where}: 'text' must be a string, got {type(text).__name__}")
    found = next((row[key] for key in TOKEN_KEYS if row.get(key) is not None), None)
    if found is not None:
        return unmasked(where, ids_of(where, found), row.get(MASK_KEY))
    if any(key in row for key in (*TEXT_KEYS, *TOKEN_KEYS, CHAT_KEY)):
        return None
    raise InputError(f"{where} has neither 'text' nor 'input_ids' nor 'messages': add one of them")


def checked_text(where: Any, text: str) -> str:
    """Return the text. Raises InputError for lone surrogates, which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise InputError(f"{where}: invalid Unicode, lone surrogate {code}: remove it") from None
    return text


def ids_of(where: Any, values: Any) -> np.ndarray:
    """Token ids `[T]` int64. Raises InputError if `values` is not a flat list of integers."""
    try:
        ids = np.asarray(values)
    except (ValueError, OverflowError):
        ids = np.empty((0, 0))
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or ids.size == 0):
        raise InputError(f"{where}: expected a flat list of integer token ids")
    return ids.astype(np.int64)


def unmasked(where: Any, ids: np.ndarray, mask: Any) -> np.ndarray:
    """The ids that the attention mask keeps. Raises InputError for an invalid mask."""
    if mask is None:
        return ids
    keep = np.asarray(mask) if isinstance(mask, list | tuple | np.ndarray) else np.empty((0, 0))
    if keep.shape != ids.shape or not np.isin(keep, (0, 1)).all():
        raise InputError(f"{where}: attention_mask must have a 0 or a 1 for each token")
    return ids[keep.astype(bool)]
