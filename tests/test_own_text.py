"""Calibration from the model's own text, and from chats."""

import json

import numpy as np
import pytest
from conftest import write_llama, write_opt
from safetensors.numpy import load_file
from test_data import TEXT, calibrate, encode
from test_generate_command import with_template
from vision import small_sam

import icp_jax
from icp_jax import data
from icp_jax.cli import main
from icp_jax.config import RunConfig
from icp_jax.data import inputs, own
from icp_jax.data.tokenizer import load_tokenizer
from icp_jax.errors import InputError
from icp_jax.runs.run import prune_folder

# ---------------------------------------------------------------- self:N


def test_windows_start_a_text_and_are_drawn(opt_folder, monkeypatch):
    model = icp_jax.load(opt_folder)
    windows = icp_jax.calibrate(model, "self:5", seq_len=12)
    assert windows.shape == (5, 12) and windows.dtype == np.int32
    assert (windows[:, 0] == 2).all() and len(np.unique(windows, axis=0)) == 5
    np.testing.assert_array_equal(windows, icp_jax.calibrate(model, "self:5", seq_len=12))
    other = icp_jax.calibrate(model, "self:5", seq_len=12, seed=1)
    assert (windows[:, 1:] != other[:, 1:]).mean() > 0.9
    monkeypatch.setattr(own, "ROWS", 2)  # batches do not change the windows
    np.testing.assert_array_equal(windows, icp_jax.calibrate(model, "self:5", seq_len=12))


def test_windows_follow_the_models_own_distribution(opt_folder):
    """The second token: its probability after the first, over many windows."""
    model = icp_jax.load(opt_folder)
    drawn = icp_jax.calibrate(model, "self:2000", seq_len=2)[:, 1]
    logits = np.asarray(model.logits(np.array([[2]], np.int32)), np.float64)[0, 0]
    p = np.exp(logits - logits.max())
    p /= p.sum()
    likely = np.argsort(p)[-200:]
    want = p[likely].sum()
    found = np.isin(drawn, likely).mean()
    assert abs(found - want) < 4 * np.sqrt(want * (1 - want) / 2000)


def test_a_run_on_its_own_text_is_recorded_and_resumed(tmp_path, opt_folder):
    out = tmp_path / "out"
    args = ["prune", str(opt_folder), str(out), "--data", "self:4", "--seq-len", "16"]
    assert main([*args, "--method", "wanda"]) == 0
    record = json.loads((out / "icp_run.json").read_text())
    assert record["config"]["calibration"]["data"] == "self:4"
    assert record["config"]["calibration"]["samples"] == 4
    assert record["config"]["calibration"]["seed"] == 0
    model = icp_jax.load(opt_folder)
    again = icp_jax.calibrate(model, "self:4", seq_len=16)
    assert record["inputs"].items() >= inputs.record(model, again).items()

    def cut(block, phase, done, total, loss):
        if block == 1 and phase == "prune":
            raise KeyboardInterrupt

    config = RunConfig(
        model=str(opt_folder),
        out=str(tmp_path / "cut"),
        prune=icp_jax.PruneConfig(method="wanda"),
        calibration=icp_jax.CalibrationConfig("self:4", seq_len=16),
    )
    with pytest.raises(KeyboardInterrupt):
        prune_folder(config, cut)
    said = []
    prune_folder(config, resume=True, say=said.append)
    assert "block" in "".join(said)  # it went on after block 0
    one, other = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "cut"))
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor, other[name])


def test_what_cannot_be_written_is_refused(tmp_path, opt_folder, capsys):
    model = icp_jax.load(opt_folder)
    for source in ("self:", "self:0", "self:x", "self:-3"):
        with pytest.raises(InputError, match="give a number of windows"):
            icp_jax.calibrate(model, source)
    with pytest.raises(InputError, match="has 4 windows, but 5 samples are asked for"):
        icp_jax.calibrate(model, "self:4", samples=5)
    no_start = icp_jax.load(write_llama(tmp_path / "llama"))
    with pytest.raises(InputError, match="has no bos_token_id"):
        icp_jax.calibrate(no_start, "self:4")
    small_sam.write_sam(tmp_path / "sam")
    with pytest.raises(InputError, match="writes no text"):
        icp_jax.calibrate(icp_jax.load(tmp_path / "sam"), "self:4")
    args = ["prune", str(opt_folder), str(tmp_path / "out"), "--data", "self:4"]
    assert main([*args, "--host-memory", "100KiB"]) == 2
    assert "needs the whole model in host memory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- chats

CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi " * 40}]


def jsonl(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_chats_are_formatted_by_the_template(tmp_path):
    folder = with_template(write_opt(tmp_path / "opt", num_hidden_layers=1))
    path = jsonl(tmp_path / "chats.jsonl", {"messages": CHAT})
    tokenizer = load_tokenizer(folder)
    text = f"<user>Hello\n<assistant>{'Hi ' * 40}\n"
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    encoder = data.Encoder(folder, 2048)
    corpus = data.load_corpus(str(path))
    np.testing.assert_array_equal(encoder(corpus.pieces[0]), whole)
    windows = icp_jax.calibrate(icp_jax.load(folder), path, samples=3, seq_len=8)
    assert windows.shape == (3, 8)
    for window in windows:
        assert tokenizer.decode(window).strip() in text


def test_chats_of_an_arrow_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"messages": [CHAT, CHAT]}).save_to_disk(str(tmp_path / "chats"))
    corpus = data.load_corpus(str(tmp_path / "chats"))
    assert [chat.messages for chat in corpus.pieces] == [CHAT, CHAT] and not corpus.rows


def test_short_chats_are_joined(tmp_path):
    folder = with_template(write_opt(tmp_path / "opt", num_hidden_layers=1))
    rows = [{"messages": [{"role": "user", "content": f"{k}"}]} for k in range(40)]
    path = jsonl(tmp_path / "chats.jsonl", *rows)
    assert icp_jax.calibrate(icp_jax.load(folder), path, samples=2, seq_len=32).shape == (2, 32)


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"messages": CHAT}, {"text": "plain"}], "line 2 has text or tokens, .* have a chat"),
        ([{"text": "plain"}, {"messages": CHAT}], "line 2 has a chat, .* have text or tokens"),
        ([{"messages": "Hello"}], "line 1: messages must be a list of objects"),
        ([{"messages": [{"role": "user"}]}], "a role and a content"),
        ([{"messages": [{"role": "user", "content": ["x"]}]}], "both texts"),
        ([{"messages": []}], "only 1 empty rows"),
        ([{"messages": [{"role": "user", "content": "\ud800"}]}], "lone surrogate"),
    ],
)
def test_rows_that_are_no_chats_are_refused(tmp_path, rows, said):
    with pytest.raises(InputError, match=said):
        data.load_corpus(str(jsonl(tmp_path / "a.jsonl", *rows)))


def test_a_template_that_is_missing_or_refuses(tmp_path, opt_folder):
    path = jsonl(tmp_path / "a.jsonl", {"messages": CHAT})
    with pytest.raises(InputError, match="line 1: the model's tokenizer has no chat template"):
        icp_jax.calibrate(icp_jax.load(opt_folder), path, samples=2, seq_len=8)
    folder = with_template(write_opt(tmp_path / "opt", num_hidden_layers=1))
    path = jsonl(tmp_path / "b.jsonl", {"messages": [{"role": "odd", "content": "x"}]})
    with pytest.raises(InputError, match="line 1: the chat template refuses .* no such role"):
        icp_jax.calibrate(icp_jax.load(folder), path, samples=2, seq_len=8)


# ---------------------------------------------------------------- windows that do not overlap


def starts(tokens, ids):
    where = {int(token): k for k, token in enumerate(ids)}  # all tokens differ
    return sorted(where[int(row[0])] for row in tokens)


def test_windows_of_a_text_do_not_overlap(tmp_path, caplog):
    (tmp_path / "a.txt").write_text(TEXT)
    found = [starts(calibrate(tmp_path / "a.txt", 10, 8, seed), encode(TEXT)) for seed in range(9)]
    for at in found:
        assert min(np.diff(at)) >= 8
    assert len({tuple(at) for at in found}) == 9
    assert {min(at) for at in found} > {0}  # from anywhere, the ends included
    exact = calibrate(tmp_path / "a.txt", 11, 8)
    assert min(np.diff(starts(exact, encode(TEXT)))) >= 8 and not caplog.records


def test_a_text_that_is_too_short_for_that_says_so(tmp_path, caplog):
    (tmp_path / "a.txt").write_text(TEXT)
    calibrate(tmp_path / "a.txt", samples=12)
    assert "windows overlap: 12 windows of 8 tokens are drawn from 91" in caplog.text


def test_windows_of_one_document_do_not_overlap(tmp_path):
    rows = np.arange(120).reshape(3, 40)
    np.save(tmp_path / "a.npy", rows)
    at = starts(calibrate(tmp_path / "a.npy", samples=15), np.arange(120))
    assert min(np.diff(at)) >= 8


def test_the_published_draws_are_there_by_a_flag(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    config = icp_jax.CalibrationConfig(str(tmp_path / "a.txt"), 6, 8, 0, overlap=True)
    rng = np.random.default_rng(0)
    at = [int(rng.integers(len(TEXT) + 1 - 8 + 1)) for _ in range(6)]
    want = [encode(TEXT)[k : k + 8] for k in at]
    np.testing.assert_array_equal(data.calibration_tokens(config, 64, encode), want)
