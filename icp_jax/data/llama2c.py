"""The tokenizer file of llama2.c, such as `tok512.bin`, as a tokenizer of transformers.

Layout: int32 length of the longest piece; then for every piece a float32 score, an int32 length and
its bytes. Text becomes a space and its characters, unknown ones as bytes; then the adjacent pair
whose joined piece has the highest score is merged, until none is left.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from converters.names import TOKENIZER_BIN
from icp_jax.errors import InputError

SPECIAL = ("<unk>", "<s>", "</s>")  # the first three pieces


def find(folder: Path) -> Path | None:
    """The only llama2.c tokenizer in a folder; None if there is none, or more than one."""
    found = [path for path in folder.iterdir() if TOKENIZER_BIN.fullmatch(path.name)]
    return found[0] if len(found) == 1 else None


def read(path: Path) -> tuple[list[bytes], list[float]]:
    """Pieces and their scores. Raises InputError."""
    raw, at = path.read_bytes(), 4
    pieces: list[bytes] = []
    scores: list[float] = []
    longest = struct.unpack_from("<i", raw)[0] if len(raw) > at else 0
    while at < len(raw) or not pieces:
        score, length = struct.unpack_from("<fi", raw, at) if at + 8 <= len(raw) else (0.0, -1)
        at += 8 + length
        if not 0 <= length <= longest or at > len(raw):
            raise InputError(f"{path} is not a tokenizer of llama2.c: copy the file again")
        pieces.append(raw[at - length : at])
        scores.append(score)
    return pieces, scores


def load(path: Path) -> Any:
    """The tokenizer, fast and with its special tokens. Raises InputError."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces, scores = read(path)
    try:
        names = [*SPECIAL, *(piece.decode() for piece in pieces[len(SPECIAL) :])]
    except UnicodeDecodeError:
        raise InputError(f"{path} has pieces that are not UTF-8: copy the file again") from None
    ids = {name: k for k, name in enumerate(names)}
    bpe = models.BPE(ids, merges(ids, scores), unk_token=SPECIAL[0], byte_fallback=True)
    made = Tokenizer(bpe)
    made.normalizer = normalizers.Prepend(" ")
    bos = SPECIAL[1]
    made.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [(bos, ids[bos])])
    made.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, **special
    )


def merges(ids: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """All pairs of pieces that join to a piece, those of the highest score first."""
    found = []
    for name, k in ids.items():
        if k >= len(SPECIAL):
            cuts = ((name[:at], name[at:]) for at in range(1, len(name)))
            found += [(-scores[k], pair) for pair in cuts if pair[0] in ids and pair[1] in ids]
    return [pair for _, pair in sorted(found, key=lambda entry: entry[0])]
