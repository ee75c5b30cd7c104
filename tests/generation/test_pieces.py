"""Text as it comes: the pieces are the whole text, in whole characters."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from icp_jax.data.tokenizer import load_tokenizer
from icp_jax.demo import BUNDLED
from icp_jax.generation.pieces import Pieces

TEXT = 'def f(x):\n    """naïve 漢字 🙂🙂"""\n\n\n  return  x  '


def metaspace():
    """A tokenizer whose first word loses its space, as SentencePiece has it."""
    words = ["<unk>", "▁", "▁the", "▁cat", "s", "▁sat"]
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.parametrize("start", [0, 3])
def test_pieces_of_a_byte_level_tokenizer(start):
    tokenizer = load_tokenizer(BUNDLED)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    pieces = Pieces(tokenizer, ids[:start])
    told = [pieces.add(token) for token in ids[start:]]
    assert "".join(told) + pieces.rest() == TEXT[len(tokenizer.decode(ids[:start])) :]
    assert "\ufffd" not in "".join(told)
    assert "" in told  # a character of several tokens


def test_spaces_between_words_of_a_prompt_and_the_text_after_it():
    pieces = Pieces(metaspace(), [2])
    assert [pieces.add(token) for token in (3, 4, 5)] == [" cat", "s", " sat"]
    assert Pieces(metaspace(), []).add(3) == "cat"  # nothing before it


def test_bytes_that_never_make_a_character_come_out():
    tokenizer = load_tokenizer(BUNDLED)
    broken = tokenizer("🙂", add_special_tokens=False)["input_ids"][:1]
    pieces = Pieces(tokenizer, [])
    told = "".join(pieces.add(token) for token in broken * 20)
    assert told.count("\ufffd") >= 8
    assert set(told + pieces.rest()) == {"\ufffd"}


def test_special_tokens_are_not_shown():
    tokenizer = load_tokenizer(BUNDLED)
    pieces = Pieces(tokenizer, [])
    (a,) = tokenizer("a", add_special_tokens=False)["input_ids"]
    told = [pieces.add(token) for token in (a, tokenizer.eos_token_id, a)]
    assert told == ["a", "", "a"]
