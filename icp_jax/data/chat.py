"""Chats as text, by the tokenizer's own chat template."""

from __future__ import annotations

from typing import Any

from converters.rules import first_line
from icp_jax.data.hub_errors import SHOWN
from icp_jax.errors import InputError

Messages = list[dict[str, str]]  # each with a role and a content


def checked_messages(where: Any, value: Any) -> Messages:
    """The messages of a row. Raises InputError if they are not {role, content} pairs of texts."""
    good = isinstance(value, list) and all(
        isinstance(m, dict) and all(isinstance(m.get(key), str) for key in ("role", "content"))
        for m in value
    )
    if not good:
        raise InputError(
            f"{where}: messages must be a list of objects with a role and a content, both texts"
        )
    return [{"role": m["role"], "content": m["content"]} for m in value]


def as_text(tokenizer: Any, messages: Messages, where: Any, *, reply: bool = False) -> str:
    """The text of a chat. reply: end it where the model answers. Raises InputError.

    where: the model or the row, for the message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{where}: the model's tokenizer has no chat template: give plain text instead"
        )
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=reply
        )
    except Exception as error:  # a template raises what it likes
        why = first_line(error)[:SHOWN]
        raise InputError(f"{where}: the chat template refuses the messages: {why}") from None
    return str(text)
