"""Chats as text, by the tokenizer's own chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converters.rules import first_line
from icp_jax.data.hub_errors import SHOWN
from icp_jax.errors import InputError

Messages = list[dict[str, str]]  # each with a role and a content


@dataclass(frozen=True)
class Chat:
    """The messages of one row, and its place for messages. Its length is its characters."""

    where: str
    messages: Messages

    def __len__(self) -> int:
        return sum(len(message["content"]) for message in self.messages)


def chat_of(where: Any, value: Any) -> Chat:
    """The chat of a row. Raises InputError if it has not only {role, content} pairs of texts."""
    good = isinstance(value, list) and all(
        isinstance(m, dict) and all(isinstance(m.get(key), str) for key in ("role", "content"))
        for m in value
    )
    if not good:
        raise InputError(
            f"{where}: messages must be a list of objects with a role and a content, both texts"
        )
    messages = [{"role": m["role"], "content": m["content"]} for m in value]
    try:
        "".join(text for message in messages for text in message.values()).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: a message has a lone surrogate: remove it") from None
    return Chat(str(where), messages)


def as_text(tokenizer: Any, messages: Messages, where: Any, *, reply: bool = False) -> str:
    """The text of a chat. reply: end it where the model answers. Raises InputError.

    where: the model or the row, for the message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{where}: the model's tokenizer has no chat template: give plain text instead"
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
    except Exception as error:  # a template raises what it likes
        why = first_line(error)[:SHOWN]
        raise InputError(f"{where}: the chat template refuses the messages: {why}") from None
    return str(text)
