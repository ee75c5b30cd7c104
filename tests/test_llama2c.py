"""The tokenizer of llama2.c against the loop that defines it."""

from pathlib import Path

import bench_stories
import numpy as np
import pytest
from conftest import write_llama

from icp_jax.cli import main
from icp_jax.data import llama2c
from icp_jax.data.tokenizer import load_tokenizer
from icp_jax.demo import BUNDLED
from icp_jax.errors import InputError

SHARED = Path(__file__).parents[2] / "shared"
STORIES = SHARED / "models" / "stories260K"
needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason=f"no {STORIES}")
ODD = [
    "a",
    " two  spaces",
    "tabs\tand\nlines\n\n",
    "naïve façade – “quoted” 日本 🙂",
    "<0x0A>",
    "aaaaaaa",
]


@needs_stories
def test_the_tokens_are_those_of_the_merging_loop():
    tokenizer = load_tokenizer(STORIES)
    vocabulary = bench_stories.read_vocabulary(STORIES / "tok512.bin")
    text = (SHARED / "data" / "text" / "tinystories-slice.txt").read_text()
    stories = [text[at : at + 500] for at in (0, 5000, 90_000)]
    for piece in [*stories, *ODD, (BUNDLED / "heldout.txt").read_text()[:300]]:
        ids = tokenizer(piece, verbose=False)["input_ids"]
        assert ids == bench_stories.encode(piece, *vocabulary)
        assert tokenizer.decode(ids, skip_special_tokens=True) == piece


def write(path: Path, pieces: list[tuple[float, bytes]]) -> Path:
    parts = [np.int32(max(len(p) for _, p in pieces)).tobytes()]
    for score, piece in pieces:
        parts += [np.float32(score).tobytes(), np.int32(len(piece)).tobytes(), piece]
    path.write_bytes(b"".join(parts))
    return path


def tiny(folder: Path) -> Path:
    """Special pieces, 256 bytes, and a few letters and merges."""
    pieces = [(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n")]
    pieces += [(0.0, f"<0x{k:02X}>".encode()) for k in range(256)]
    words = [b" ", b"a", b"b", b"c", b"bc", b"ab", b" a", b"abc"]
    return write(folder / "tok267.bin", pieces + [(-float(k), w) for k, w in enumerate(words)])


def test_the_highest_score_is_merged_first(tmp_path):
    tokenizer = llama2c.load(tiny(tmp_path))
    spoken = tokenizer.convert_ids_to_tokens(tokenizer("abc b\n")["input_ids"])
    assert spoken == ["<s>", " a", "bc", " ", "b", "<0x0A>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_a_pruned_model_keeps_it_and_reads_text_by_it(tmp_path, capsys):
    folder = write_llama(tmp_path / "model", vocab_size=267)
    tiny(folder)
    (tmp_path / "text.txt").write_text("abc cab " * 99)
    data = ["--data", str(tmp_path / "text.txt"), "--seq-len", "16"]
    out = str(tmp_path / "out")
    assert main(["prune", str(folder), out, *data, "--method", "wanda", "--samples", "2"]) == 0
    assert main(["eval", out, *data]) == 0
    assert "perplexity" in capsys.readouterr().out


@pytest.mark.parametrize("cut", [0, 3, 20])
def test_a_file_that_is_cut_off(tmp_path, cut):
    whole = tiny(tmp_path).read_bytes()
    (tmp_path / "tok267.bin").write_bytes(whole[: cut and len(whole) - cut])
    with pytest.raises(InputError, match="not a tokenizer of llama2.c") as found:
        load_tokenizer(tmp_path)
    assert "\n" not in str(found.value)
