"""Tokenizers in GGUF give the ids of the tokenizers that they were made of."""

import inspect
import json
from functools import partial
from pathlib import Path

import bench_stories
import gguf_oracle as oracle
import pytest
from conftest import LLAMA
from gguf import TokenType
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2 import tokenization_qwen2

from converters import ConversionError
from converters.gguf_metadata import read_gguf
from converters.gguf_tokenizer import tokenizer_of
from icp_jax.data.tokenizer import load_tokenizer
from icp_jax.demo import BUNDLED

STORIES = Path(__file__).parents[2].parent / "shared" / "models" / "stories260K"
TINY_STORIES = STORIES.parents[1] / "data" / "text" / "tinystories-slice.txt"
SPECIAL = ["<|begin|>", "<|end|>", "<|pad|>"]
TEXTS = [
    "HelloWorld 1234567 it's They'LL don't\n\n\n  two  spaces\tand\r\ntabs ",
    "ünïcode é (e\u0301), 日本語, русский, 🙂👍🏽; x=y**2 // path/to/file",
    "<|begin|>system\nsay <|end|>no",
    "",
]


def levels():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), levels()])


def words():
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


LLAMA3 = inspect.signature(TikTokenConverter).parameters["pattern"].default
KINDS = {  # name in GGUF: (pre-tokenizer, normalizer, a word that is a token is kept whole)
    "gpt-2": (words, None, False),
    "default": (words, None, False),
    "smollm": (
        lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words()]),
        None,
        False,
    ),
    "qwen2": (partial(split, tokenization_qwen2.PRETOKENIZE_REGEX), normalizers.NFC, False),
    "llama-bpe": (partial(split, LLAMA3), None, True),
}


@pytest.fixture(scope="module")
def text():
    return (BUNDLED / "calibration.txt").read_text()[:60_000]


def trained(text, kind):
    pre, unicode, whole = KINDS[kind]
    made = Tokenizer(models.BPE(ignore_merges=whole))
    made.pre_tokenizer = pre()
    if unicode is not None:
        made.normalizer = unicode()
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text, *TEXTS], trainer)
    return made


def parts_of(tokenizer):
    """(tokens in the order of their ids, merges as lines)."""
    record = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(record["vocab"], key=record["vocab"].get)
    return tokens, [" ".join(pair) for pair in record["merges"]]


def write(path, *more, tokenizer):
    config = {**LLAMA, "vocab_size": 97}
    return oracle.write_gguf(path, config, {}, tokenizer=tokenizer, add=more) and path


@pytest.mark.parametrize("kind", KINDS)
def test_byte_level_tokenizers_come_back(kind, text, tmp_path):
    want = trained(text, kind)
    tokens, merges = parts_of(want)
    add = partial(oracle.add_tokenizer, tokens=tokens, merges=merges, pre=kind)
    path = write(tmp_path / "a.gguf", lambda w: w.add_add_bos_token(False), tokenizer=add)
    got = tokenizer_of(read_gguf(path))
    for sample in (text, *TEXTS):
        encoded = got.encode(sample)
        assert encoded.ids == want.encode(sample).ids
        if kind != "qwen2":
            assert got.decode(encoded.ids, skip_special_tokens=False) == sample
    assert got.get_vocab() == want.get_vocab()


def test_tekken_cuts_at_capitals_and_single_digits(text, tmp_path):
    tokens, merges = parts_of(trained(text, "llama-bpe"))
    add = partial(oracle.add_tokenizer, tokens=tokens, merges=merges, pre="tekken")
    got = tokenizer_of(read_gguf(write(tmp_path / "a.gguf", tokenizer=add)))
    cut = got.pre_tokenizer.pre_tokenize_str("HelloWorld 123 IOError")
    assert [piece for piece, _ in cut] == ["Hello", "World", "Ġ", "1", "2", "3", "ĠIOError"]


def test_added_tokens_special_ones_and_a_chat(text, tmp_path):
    """As a folder that transformers loads: framing, added tokens, template, ids of the config."""
    tokens, merges = parts_of(trained(text, "gpt-2"))
    tokens = [*tokens, "<tool call>", "[PAD7]"]
    user = len(tokens) - 2

    def add(writer):
        oracle.add_tokenizer(writer, tokens, merges, "llama-bpe", user=(user,))
        types = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3)
        types[user], types[user + 1] = TokenType.USER_DEFINED, TokenType.UNUSED
        del writer.kv_data[0]["tokenizer.ggml.token_type"]
        writer.add_token_types(types)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(2)
        writer.add_eot_token_id(user)
        writer.add_chat_template("{% for m in messages %}<|begin|>{{ m.content }}{% endfor %}")

    path = write(tmp_path / "a.gguf", tokenizer=add)
    got = tokenizer_of(read_gguf(path))
    assert "[PAD7]" not in got.get_vocab()
    assert got.encode("a<tool call>b<|end|>").tokens == [
        "<|begin|>",
        "a",
        "<tool call>",
        "b",
        "<|end|>",
    ]
    assert got.decode(got.encode("a<tool call>b<|end|>").ids) == "a<tool call>b"


def test_the_folder_that_transformers_loads(text, tmp_path):
    state = oracle.random_state({**LLAMA, "tie_word_embeddings": True})

    def add(writer):
        oracle.add_tokenizer(writer, pre="llama-bpe")
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_eot_token_id(0)
        writer.add_chat_template("{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}")

    path = oracle.write_gguf(tmp_path / "a.gguf", LLAMA, state, tokenizer=add)
    from icp_jax.runs.convert import convert

    convert(path, tmp_path / "out")
    for source in (path, tmp_path / "out"):
        tokenizer = load_tokenizer(source)
        assert tokenizer("ab")["input_ids"] == [1, 3 + ord("a") - 33, 3 + ord("b") - 33]
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
        said = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert said == "<s>Hi</s>"
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 0]}


def sentencepiece(writer, pieces, scores, types, prefix=True):
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(prefix)


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no {STORIES}")
def test_sentencepiece_comes_back(tmp_path):
    """A trained vocabulary, against the joining of the best pair by hand."""
    raw, scores = bench_stories.read_vocabulary(STORIES / "tok512.bin")
    pieces = [piece.decode(errors="replace").replace(" ", "▁") for piece in raw]
    pieces[:3] = ["<unk>", "<s>", "</s>"]
    pieces[3:259] = [f"<0x{byte:02X}>" for byte in range(256)]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * (len(pieces) - 259)
    add = partial(sentencepiece, pieces=pieces, scores=scores, types=types)
    got = tokenizer_of(read_gguf(write(tmp_path / "a.gguf", tokenizer=add)))
    samples = TINY_STORIES.read_text()[:3000].split("\n\n") if TINY_STORIES.exists() else []
    for sample in (*samples, "Once upon a time, ünïcode 🙂  two spaces"):
        assert got.encode(sample).ids == bench_stories.encode(sample, raw, scores)
        assert got.decode(got.encode(sample).ids) == sample


def test_sentencepiece_without_a_space_before_the_text(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", "<0x41>", "▁", "a", "b", "ab", "▁ab"]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    types += [TokenType.NORMAL] * 5
    scores = [0.0] * 7 + [-1.0, -2.0]
    for prefix, want in (
        (True, ["<s>", "▁ab", "▁ab", "<0x41>"]),
        (False, ["<s>", "ab", "▁ab", "<0x41>"]),
    ):
        add = partial(sentencepiece, pieces=pieces, scores=scores, types=types, prefix=prefix)
        path = write(tmp_path / f"{prefix}.gguf", tokenizer=add)
        assert tokenizer_of(read_gguf(path)).encode("ab abA").tokens == want


@pytest.mark.parametrize(
    "change,message",
    [
        ({"tokenizer.ggml.model": "bert"}, "kind 'bert', which is not supported; supported: gpt2"),
        ({"tokenizer.ggml.pre": "other"}, "pre-tokenizer 'other', which is not supported; supp"),
        ({"tokenizer.ggml.merges": ["no such"]}, "has a damaged tokenizer"),
        ({"tokenizer.ggml.merges": ["nothing"]}, "has a damaged tokenizer"),
    ],
)
def test_refused_in_one_line(change, message, tmp_path):
    def add(writer):
        oracle.add_tokenizer(writer)
        for key, value in change.items():
            writer.kv_data[0].pop(key, None)
            writer.add_array(key, value) if isinstance(value, list) else writer.add_string(
                key, value
            )

    path = write(tmp_path / "a.gguf", tokenizer=add)
    with pytest.raises(ConversionError, match=message) as raised:
        tokenizer_of(read_gguf(path))
    assert "\n" not in str(raised.value)


def test_a_file_without_a_tokenizer(tmp_path):
    assert (
        tokenizer_of(read_gguf(write(tmp_path / "a.gguf", tokenizer=lambda writer: None))) is None
    )
