"""The tokenizer of a model in GGUF as a `tokenizers` tokenizer.

Byte-level BPE (`gpt2` in GGUF) comes with merges and the name of its pre-tokenizer. SentencePiece
BPE (`llama`) comes with scores, from which the merges follow.
"""

from __future__ import annotations

from typing import Any

from converters.gguf_metadata import Gguf
from converters.gguf_pre import ADD_BOS, IGNORE_MERGES, normalizer, pre_tokenizer
from converters.names import shown
from converters.rules import ConversionError, first_line

UNKNOWN, CONTROL, USER, UNUSED = 2, 3, 4, 5  # types of tokens; others are ordinary
NONE = ("none", "no_vocab")  # what a file without a tokenizer calls it
SPACE = "▁"  # SentencePiece's


def tokenizer_of(model: Gguf) -> Any:
    """The `tokenizers.Tokenizer` of a model; None if the file has none. Raises ConversionError."""
    kind = model.metadata.get("tokenizer.ggml.model")
    if kind in (None, *NONE):
        return None
    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(str(kind))
    if build is None:
        raise ConversionError(
            f"{model.first} has a tokenizer of kind {shown(kind)}, which is not supported; "
            "supported: gpt2, llama"
        )
    try:
        made = build(model)
        _add_tokens(model, made)
        made.post_processor = _framing(model, str(kind))
    except ConversionError:
        raise
    except Exception as error:  # the library raises plain exceptions
        raise ConversionError(
            f"{model.first} has a damaged tokenizer ({shown(first_line(error))})"
        ) from None
    return made


def token(model: Gguf, name: str) -> str | None:
    """The text of a special token, such as `bos`; None if there is none."""
    at = model.metadata.get(f"tokenizer.ggml.{name}_token_id")
    tokens = model.metadata["tokenizer.ggml.tokens"]
    return tokens[at] if at is not None and 0 <= at < len(tokens) else None


def _types(model: Gguf) -> list[int]:
    tokens = model.metadata["tokenizer.ggml.tokens"]
    return model.metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)


def _vocabulary(model: Gguf) -> dict[str, int]:
    """Ids by token, without the unused ones that only fill the embedding."""
    found: dict[str, int] = {}
    pairs = zip(model.metadata["tokenizer.ggml.tokens"], _types(model), strict=True)
    for i, (text, kind) in enumerate(pairs):
        if kind != UNUSED:
            found.setdefault(text, i)
    return found


def _byte_level(model: Gguf) -> Any:
    from tokenizers import Tokenizer, decoders, models

    pre = str(model.metadata.get("tokenizer.ggml.pre", "default"))
    merges = []
    for line in model.metadata.get("tokenizer.ggml.merges", []):
        at = line.index(" ", 1)  # a token may begin with a space
        merges.append((line[:at], line[at + 1 :]))
    bpe = models.BPE(_vocabulary(model), merges, ignore_merges=pre in IGNORE_MERGES)
    made = Tokenizer(bpe)
    made.pre_tokenizer = pre_tokenizer(pre, model.first)
    if (unicode := normalizer(pre)) is not None:
        made.normalizer = unicode
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(model: Gguf) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = _vocabulary(model)
    bpe = models.BPE(
        vocabulary,
        _merges(vocabulary, model.metadata["tokenizer.ggml.scores"]),
        unk_token=token(model, "unknown"),
        fuse_unk=True,
        byte_fallback=True,
    )
    made = Tokenizer(bpe)
    before: list[Any] = [normalizers.Replace(" ", SPACE)]
    after: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.metadata.get("tokenizer.ggml.add_space_prefix", True):
        before.insert(0, normalizers.Prepend(SPACE))
        after.append(decoders.Strip(" ", 1, 0))
    made.normalizer = normalizers.Sequence(before)
    made.decoder = decoders.Sequence(after)
    return made


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, the best token first, as SentencePiece joins them."""
    found = []
    for text, i in vocabulary.items():
        for at in range(1, len(text)):
            left, right = text[:at], text[at:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[i], vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_tokens(model: Gguf, made: Any) -> None:
    """Mark the tokens that are taken whole from the text: special ones, and the user's."""
    from tokenizers import AddedToken

    pairs = zip(model.metadata["tokenizer.ggml.tokens"], _types(model), strict=True)
    added = [
        AddedToken(text, special=kind != USER, normalized=False)
        for text, kind in pairs
        if kind in (UNKNOWN, CONTROL, USER) and text
    ]
    made.add_tokens([t for t in added if not t.special])
    made.add_special_tokens([t for t in added if t.special])


def _framing(model: Gguf, kind: str) -> Any:
    """What is put before and after a text: the tokens of its begin and end, if they are added."""
    from tokenizers import processors

    pre = str(model.metadata.get("tokenizer.ggml.pre", "default"))
    begins = kind == "llama" or pre in ADD_BOS
    bos, eos = token(model, "bos"), token(model, "eos")
    if not model.metadata.get("tokenizer.ggml.add_bos_token", begins):
        bos = None
    if not model.metadata.get("tokenizer.ggml.add_eos_token", False):
        eos = None
    level = processors.ByteLevel(trim_offsets=False)
    if bos is None and eos is None:
        return (
            level if kind == "gpt2" else processors.TemplateProcessing(single="$A", pair="$A $B:1")
        )
    first, second = ["$A:0"], ["$B:1"]
    ids = [(t, model.metadata["tokenizer.ggml.tokens"].index(t)) for t in {bos, eos} - {None}]
    if bos is not None:
        first, second = [f"{bos}:0", *first], [f"{bos}:1", *second]
    if eos is not None:
        first, second = [*first, f"{eos}:0"], [*second, f"{eos}:1"]
    template = processors.TemplateProcessing(
        single=first, pair=[*first, *second], special_tokens=ids
    )
    return processors.Sequence([level, template]) if kind == "gpt2" else template
