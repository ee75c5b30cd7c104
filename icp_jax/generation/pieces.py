"""Text from tokens as they come: whole characters, and the spaces that the tokenizer means."""

from __future__ import annotations

from typing import Any

CONTEXT = 8  # tokens before a piece that settle its spaces
CUT = "\ufffd"  # stands for the bytes of a character that is not complete
LONGEST = 8  # tokens after which a character that is still not complete is not waited for


class Pieces:
    """Turns tokens into text. before: the tokens of the prompt."""

    def __init__(self, tokenizer: Any, before: list[int]):
        self._tokenizer = tokenizer
        self._ids = before[-CONTEXT:]
        self._told = len(self._ids)  # tokens whose text is out

    def _text(self, ids: list[int]) -> str:
        clean = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(ids, **clean))

    def add(self, token: int) -> str:
        """The new text; empty while a character lacks bytes."""
        self._ids.append(token)
        waits = self._new().endswith(CUT) and len(self._ids) - self._told < LONGEST
        return "" if waits else self.rest()

    def _new(self) -> str:
        return self._text(self._ids)[len(self._text(self._ids[: self._told])) :]

    def rest(self) -> str:
        """All text that is not out yet."""
        new = self._new()
        self._ids = self._ids[-CONTEXT:]
        self._told = len(self._ids)
        return new
