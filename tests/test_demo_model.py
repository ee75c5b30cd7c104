"""The demo on a model of the user's, here a tiny one in GGUF."""

import json
import re

import gguf_oracle as oracle
import numpy as np
import pytest
from conftest import LLAMA

from icp_jax import demo_model
from icp_jax.cli import main
from icp_jax.demo import BUNDLED
from icp_jax.demo_model import heldout


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A Llama in GGUF with the bundled tokenizer's vocabulary, and little text."""
    record = json.loads((BUNDLED / "tokenizer.json").read_text())["model"]
    tokens = sorted(record["vocab"], key=record["vocab"].get)
    merges = [" ".join(pair) for pair in record["merges"]]
    config = {**LLAMA, "vocab_size": len(tokens), "tie_word_embeddings": True}
    config = {**config, "max_position_embeddings": 32, "num_hidden_layers": 2}

    def tokenizer(writer):
        oracle.add_tokenizer(writer, tokens, merges)

    path = tmp_path / "tiny.gguf"
    oracle.write_gguf(path, config, oracle.random_state(config), kind="F16", tokenizer=tokenizer)
    monkeypatch.setattr(demo_model, "SAMPLES", 3)
    return path


def test_the_table_of_a_model(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["demo", "--model", str(tiny), "--out", str(out), "--sparsity", "0.5"]
    assert main(args) == 0
    printed, progress = capsys.readouterr()
    assert "tiny.gguf: 96 held-out tokens, windows of 32" in printed
    assert "calibrated on 3 windows of 32 tokens" in printed
    result = json.loads((out / "demo.json").read_text())
    assert [row["method"] for row in result["methods"]] == ["sparsegpt", "icp"]
    for row in result["methods"]:
        assert row["sparsity"] == pytest.approx(0.5, abs=1e-3)
        assert row["peak_host_mib"] > 50 and np.isfinite(row["perplexity"])
        assert re.search(rf"{row['method']} .*0\.50.* {row['perplexity']:.2f}", printed)
        assert (out / row["method"] / "tokenizer.json").is_file()
        assert f"{row['method']}: block 1 prune" in progress
    assert (out / "error-growth.png").is_file()
    report = (out / "report.html").read_text()
    assert "tiny.gguf pruned by 2 methods" in report and "What the model writes" in report
    assert result["texts"].keys() == {"dense", "sparsegpt", "icp"}
    assert re.search(r"Once upon a time.* \.\.\.\ndense: .*\nsparsegpt: .*\nicp: ", printed)
    assert main([*args[:-1], "2"]) == 2  # refused before the earlier demo is removed
    assert (out / "demo.json").is_file()


def test_evaluated_on_text_that_was_not_used(tiny):
    windows = heldout(tiny, lambda *event: None)
    assert windows.shape == (3, 32)


def test_a_model_that_does_not_read_text(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    assert main(["demo", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "o")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "o").exists()
