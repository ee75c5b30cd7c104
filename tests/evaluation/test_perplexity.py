"""What eval measures, against plain NumPy; its settings and messages."""

import functools
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import LLAMA, OPT, write_opt

import icp_jax
from icp_jax import InputError
from icp_jax.cli import main
from icp_jax.evaluation import output
from icp_jax.model import Model
from icp_jax.models import make_family
from icp_jax.streaming import storage

KINDS = {
    "tied": {**OPT, "vocab_size": 101, "num_hidden_layers": 2},
    "untied": {**LLAMA, "tie_word_embeddings": False},
    "projected": {**OPT, "vocab_size": 101, "word_embed_proj_dim": 16, "num_hidden_layers": 1},
    "of another size": {**OPT, "vocab_size": 97, "num_hidden_layers": 1},
}


@functools.cache
def random_model(kind, seed=0, dtype=np.float32):
    """A model of random weights in memory."""
    family = make_family(KINDS[kind])
    keys = jax.random.split(jax.random.key(seed), family.n_blocks + 2)
    tokens = np.zeros((1, 8), np.int32)
    embed = jax.jit(family.embed.init)(keys[0], tokens)["params"]
    x = np.zeros((1, 8, family.hidden_size), np.float32)
    start = jax.jit(family.block.init)
    blocks = {str(t): start(keys[t + 1], x)["params"] for t in range(family.n_blocks)}
    head = jax.jit(family.head.init)(keys[-1], x, family.head_table(embed))["params"]
    params = {"embed": embed, "blocks": blocks, "head": head}
    # larger weights than at the start of training: predictions that differ from token to token
    params = jax.tree.map(lambda w: np.asarray(3 * w if w.ndim > 1 else w).astype(dtype), params)
    return Model(KINDS[kind], params, None, Path(f"model-{seed}"))


def windows(model, count=5, length=24):
    vocabulary = model.config["vocab_size"]
    return np.random.default_rng(3).integers(0, vocabulary, (count, length)).astype(np.int32)


def log_probabilities(model, tokens):
    logits = np.asarray(jax.jit(Model.logits)(model, tokens), np.float64)[:, :-1]
    peak = logits.max(-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))


def plain(model, dense, tokens):
    """All numbers of an evaluation, by their definitions."""
    of_model, of_dense = log_probabilities(model, tokens), log_probabilities(dense, tokens)
    losses = -np.take_along_axis(of_model, tokens[:, 1:, None], -1)[..., 0]
    by_window = losses.mean(1)
    perplexity = np.exp(by_window.mean())
    return {
        "perplexity": perplexity,
        "tokens": tokens.size,
        "seq_len": tokens.shape[1],
        "standard_error": perplexity * by_window.std(ddof=1) / len(tokens) ** 0.5,
        "cross_entropy": losses.mean(),
        "median_cross_entropy": np.median(losses),
        "kl": (np.exp(of_dense) * (of_dense - of_model)).sum(-1).mean(),
        "agreement": np.mean(of_dense.argmax(-1) == of_model.argmax(-1)),
    }


def in_small_parts(monkeypatch):
    """A vocabulary of a hundred tokens is in parts of 32, the last of which overlaps."""
    monkeypatch.setattr(output, "SMALL", 0)
    monkeypatch.setattr(output, "MANY_ROWS", 10)
    monkeypatch.setattr(output, "PART", 4 * 32 * 48)


@pytest.mark.parametrize(
    "kind, parts",
    [("tied", False), ("untied", False), ("projected", True)],
)
def test_every_number_is_what_its_definition_says(kind, parts, monkeypatch):
    if parts:
        in_small_parts(monkeypatch)
    model, dense = (random_model(kind, seed) for seed in (0, 1))
    tokens = windows(model)
    found = icp_jax.evaluate(model, tokens, against=dense)
    assert found._asdict() == pytest.approx(plain(model, dense, tokens), rel=1e-5)
    assert 0 < found.agreement < 1 and found.kl > 0.01
    alone = icp_jax.evaluate(model, tokens)
    assert alone == found._replace(kl=None, agreement=None)


def test_the_other_model_may_have_another_size_and_head():
    model, dense = random_model("untied"), random_model("of another size", 1)
    tokens = windows(model)
    found = icp_jax.evaluate(model, tokens, against=dense)
    assert found._asdict() == pytest.approx(plain(model, dense, tokens), rel=1e-5)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_a_model_does_not_diverge_from_itself(kind):
    model = random_model(kind)
    found = icp_jax.evaluate(model, windows(model), against=model)
    assert (found.kl, found.agreement) == (0, 1)


def test_parts_of_the_vocabulary_in_the_stored_dtype(monkeypatch):
    for kind in ("tied", "untied"):
        model = random_model(kind, dtype=ml_dtypes.bfloat16)
        tokens = windows(model)
        whole = icp_jax.evaluate(model, tokens)
        with monkeypatch.context() as patch:
            in_small_parts(patch)
            parts = icp_jax.evaluate(model, tokens)
        # a spread of windows that are alike: the rounding of their losses counts several times
        assert parts.standard_error == pytest.approx(whole.standard_error, rel=1e-5)
        one, other = (found._replace(standard_error=0.0)[:6] for found in (parts, whole))
        assert one == pytest.approx(other, rel=1e-6)


def test_one_window_has_no_standard_error(tmp_path, capsys):
    folder = write_opt(tmp_path / "model")
    found = icp_jax.evaluate(folder, np.arange(3, 20)[None])
    assert found.standard_error is None and found.kl is None
    with pytest.raises(InputError, match="windows of one token"):
        icp_jax.evaluate(folder, np.ones((4, 1), np.int32))
    np.save(tmp_path / "ids.npy", np.arange(3, 20)[None])
    data = ["--data", str(tmp_path / "ids.npy"), "--seq-len", "17"]
    assert main(["eval", str(folder), *data]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"perplexity   {found.perplexity:.4f}"
    assert [line.split()[0] for line in lines] == ["perplexity", "loss", "tokens"]
    assert lines[2] == "tokens       17 in 1 window of 17"


@pytest.mark.parametrize("place", ["host", "disk", "pinned"])
def test_hidden_states_are_where_there_is_room(place, opt_folder, tokens, monkeypatch):
    usual, made = icp_jax.evaluate(opt_folder, tokens, against=opt_folder), []
    if place == "disk":
        room = 2 * 2 * tokens.size * 32 * 4  # twice two streams
        monkeypatch.setattr(storage, "device_free", lambda: room - 1)
        monkeypatch.setattr(storage, "host_free", lambda: room - 1)
    empty = storage.empty

    def watched(shape, dtype, where, *rest):
        if place == "pinned":
            made.append(storage.Samples(shape, np.dtype(dtype), "pinned_host"))
        else:
            made.append(empty(shape, dtype, where, *rest))
        return made[-1]

    monkeypatch.setattr(storage, "empty", watched)
    assert icp_jax.evaluate(opt_folder, tokens, against=opt_folder) == usual
    assert len(made) == 2
    assert all(isinstance(stream, np.memmap) == (place == "disk") for stream in made)


def test_progress_counts_blocks_and_output_layers_once(opt_folder, tokens):
    seen = []
    icp_jax.evaluate(opt_folder, tokens, against=opt_folder, progress=lambda *e: seen.append(e))
    done, totals = [e[2] for e in seen], {e[3] for e in seen}
    assert {e[:2] for e in seen} == {(-1, "evaluate")}
    assert done == sorted(set(done)) and totals == {done[-1]} == {8 * len(tokens)}


@pytest.fixture
def text(tmp_path, bundled):
    path = tmp_path / "text.txt"
    path.write_text((bundled / "heldout.txt").read_text()[:3000])
    return path


def evaluated(capsys, *args):
    assert main(["eval", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_limit_takes_the_first_windows(opt_folder, tokens, text, capsys):
    first = icp_jax.evaluate(opt_folder, tokens[:2])
    assert icp_jax.evaluate(opt_folder, tokens, limit=2) == first
    everything = icp_jax.evaluate(opt_folder, tokens)
    assert icp_jax.evaluate(opt_folder, tokens, limit=len(tokens) + 1) == everything
    found = evaluated(capsys, opt_folder, "--data", text, "--limit", 3)
    assert found["tokens"] == 3 * found["seq_len"] and found["standard_error"] > 0
    assert main(["eval", str(opt_folder), "--data", str(text), "--limit", "0"]) == 2
    assert "limit must be at least 1, got 0" in capsys.readouterr().err


def test_a_pruned_model_beside_the_dense_one(opt_folder, text, tmp_path, capsys):
    model = icp_jax.load(opt_folder)
    model.params["blocks"]["1"]["fc2"]["kernel"][::2] = 0
    icp_jax.save(model, tmp_path / "pruned")
    found = evaluated(capsys, tmp_path / "pruned", "--data", text, "--against", opt_folder)
    assert found["kl"] > 0 and 0 <= found["agreement"] <= 1
    args = ["eval", str(tmp_path / "pruned"), "--data", str(text), "--against", str(opt_folder)]
    assert main(args) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    share = f"{found['agreement']:.1%}"
    assert last == f"against      KL {found['kl']:.4f} nats, {share} the same first choice"


def refused(capsys, *args):
    assert main(["eval", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    return line


def test_models_that_cannot_be_compared(opt_folder, text, tmp_path, capsys):
    data = ["--data", text]
    other = write_opt(tmp_path / "other", vocab_size=2000)
    line = refused(capsys, opt_folder, *data, "--against", other)
    assert "the vocabularies differ: 2048 tokens in" in line and ", 2000 in " in line

    short = write_opt(tmp_path / "short", max_position_embeddings=16)
    line = refused(capsys, opt_folder, *data, "--against", short)
    assert f"windows of 32 tokens exceed the context 16 of {short}: set seq_len to 16" in line

    reads = write_opt(tmp_path / "reads")
    tokenizer = json.loads((reads / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:50]
    (reads / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = refused(capsys, opt_folder, *data, "--against", reads)
    assert f"{reads} reads other tokens from" in line and "the same tokenizer" in line

    (reads / "tokenizer.json").unlink()
    (reads / "tokenizer_config.json").unlink()
    assert str(reads) in refused(capsys, opt_folder, *data, "--against", reads)


def test_a_loss_that_is_not_finite_is_refused(monkeypatch):
    model = random_model("tied")
    broken = jax.tree.map(np.copy, model.params)
    broken["embed"]["tokens"]["embedding"][5, 5] = np.inf
    tokens = windows(model)
    for changed in (False, True):
        if changed:
            in_small_parts(monkeypatch)
        bad = Model(model.config, broken, None, model.folder)
        with pytest.raises(InputError, match="loss is not finite"):
            icp_jax.evaluate(bad, tokens)
        with pytest.raises(InputError, match="KL divergence is not finite"):
            icp_jax.evaluate(model, tokens, against=bad)
