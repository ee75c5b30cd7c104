"""The pre-tokenizers of byte-level BPE by their names in GGUF: where a text is cut into words.

The patterns are those of the models' own tokenizers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converters.names import shown
from converters.rules import ConversionError

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
LLAMA3 = rf"{_SHORT}|{_LETTERS}|\p{{N}}{{1,3}}{_OTHERS}{_REST}"
QWEN2 = rf"{_SHORT}|{_LETTERS}|\p{{N}}{_OTHERS}{_REST}"
TEKKEN = rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_REST}"

LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
QWEN2_NAMES = ("qwen2", "deepseek-r1-qwen")
PATTERNS = {
    **dict.fromkeys(LLAMA3_NAMES, LLAMA3),
    **dict.fromkeys(QWEN2_NAMES, QWEN2),
    "tekken": TEKKEN,
}
DIGITS = ("smollm",)  # GPT-2's words, and every digit for itself
GPT2 = ("default", "gpt-2", "gpt2")
IGNORE_MERGES = (*LLAMA3_NAMES, "tekken")  # a word that is a token is not cut further
ADD_BOS = IGNORE_MERGES  # where the file does not say


def pre_tokenizer(name: str, path: Path) -> Any:
    """The pre-tokenizer of this name. Raises ConversionError for an unknown one."""
    from tokenizers import Regex, pre_tokenizers

    if name in GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in DIGITS:
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if name not in PATTERNS:
        known = ", ".join((*PATTERNS, *DIGITS, *GPT2))
        raise ConversionError(
            f"{path} has the pre-tokenizer {shown(name)}, which is not supported; "
            f"supported: {known}"
        )
    cut = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([cut, levels])


def normalizer(name: str) -> Any:
    """Qwen normalises Unicode first; the others do not."""
    from tokenizers import normalizers

    return normalizers.NFC() if name in QWEN2_NAMES else None
