"""Which windows calibrate: rows as they are, long texts in places, and a word where few differ."""

import json

import numpy as np
import pytest
from test_data import calibrate, encode, is_window

import icp_jax
from icp_jax import data
from icp_jax.cli import main
from icp_jax.data import tokenizer, windows
from icp_jax.demo import BUNDLED
from icp_jax.errors import InputError

ROWS = np.random.default_rng(0).integers(3, 2000, (12, 8)).astype(np.int32)


def as_npy(path, rows):
    np.save(path / "rows.npy", rows)
    return path / "rows.npy"


def as_jsonl(path, rows):
    (path / "rows.jsonl").write_text("\n".join(json.dumps(r.tolist()) for r in rows))
    return path / "rows.jsonl"


def as_folder(path, rows):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"input_ids": rows.tolist()}).save_to_disk(str(path / "rows"))
    return path / "rows"


@pytest.mark.parametrize("form", [as_npy, as_jsonl, as_folder])
def test_rows_that_are_windows(tmp_path, form, caplog):
    path = form(tmp_path, ROWS)
    np.testing.assert_array_equal(calibrate(path, samples=12), ROWS)
    some = calibrate(path, samples=5)
    places = [np.flatnonzero((row == ROWS).all(1))[0] for row in some]
    assert places == sorted(set(places))
    assert not np.array_equal(some, calibrate(path, samples=5, seed=1))
    with pytest.raises(InputError, match="has 12 rows of 8 tokens, but 13 samples are asked for"):
        calibrate(path, samples=13)
    assert not caplog.records
    np.testing.assert_array_equal(calibrate(path, samples=None), ROWS)
    assert "using all 12 windows" in caplog.text


def test_shorter_rows_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [[1] * 8, [2] * 3, [3] * 8])))
    np.testing.assert_array_equal(calibrate(tmp_path / "a.jsonl", 2), [[1] * 8, [3] * 8])


def test_longer_rows_are_all_used_before_one_is_used_twice(tmp_path):
    rows = np.arange(70).reshape(7, 10)
    got = calibrate(as_npy(tmp_path, rows), samples=14)
    used = [row[0] // 10 for row in got]
    assert sorted(used[:7]) == sorted(used[7:]) == list(range(7))
    assert all(is_window(row, rows[k]) for row, k in zip(got, used, strict=True))


@pytest.mark.parametrize("samples", [None, 4, 6])
def test_the_command_and_the_library_take_the_same(tmp_path, opt_folder, samples):
    path = as_npy(tmp_path, ROWS[:6])
    chosen = [] if samples is None else ["--samples", str(samples)]
    args = ["prune", str(opt_folder), str(tmp_path / "out"), *chosen]
    args += ["--data", str(path), "--seq-len", "8"]
    assert main([*args, "--method", "magnitude"]) == 0
    record = json.loads((tmp_path / "out" / "icp_run.json").read_text())
    model = icp_jax.load(opt_folder)
    tokens = icp_jax.calibrate(model, path, samples=samples, seq_len=8)
    assert len(tokens) == (samples or 6) == record["config"]["calibration"]["samples"]
    from icp_jax.data import inputs

    assert inputs.record(model, tokens).items() <= record["inputs"].items()


@pytest.mark.parametrize(
    "tokens, samples, said", [(33, 128, True), (60, 40, True), (900, 9, False)]
)
def test_too_few_tokens_are_said(tmp_path, caplog, tokens, samples, said):
    np.save(tmp_path / "a.npy", np.arange(tokens))
    got = calibrate(tmp_path / "a.npy", samples)
    distinct = len({row[0] for row in got})
    line = f"has only {tokens} tokens: {distinct} of {samples} windows are distinct"
    assert (line in caplog.text) == said == bool(caplog.records)
    assert distinct < samples or not said


def test_a_long_text_is_tokenized_only_where_windows_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "LONG", 1 << 12)
    text = "".join(chr(200 + k % 900) for k in range(9000))
    (tmp_path / "a.txt").write_text(text)
    seen = []

    def counting(piece):
        seen.append(len(piece))
        return encode(piece)

    config = icp_jax.CalibrationConfig(str(tmp_path / "a.txt"), 9, 8, 0)
    got = data.calibration_tokens(config, 64, counting)
    assert sum(seen) < len(text) / 2
    assert got.shape == (9, 8) and len({row[0] for row in got}) > 4
    assert all(is_window(row, encode(text)) for row in got)


def test_chunks_give_what_the_whole_text_gives(monkeypatch):
    text = (BUNDLED / "calibration.txt").read_text()[:60_000] + " é漢字🙂 " * 400
    loaded = tokenizer.load_tokenizer(BUNDLED)
    whole = loaded(text, verbose=False)["input_ids"]
    monkeypatch.setattr(tokenizer, "CHUNK", 5000)
    monkeypatch.setattr(tokenizer, "OVERLAP", 500)
    done = []
    got = tokenizer.in_chunks(loaded, text, lambda *event: done.append(event))
    np.testing.assert_array_equal(got, whole)
    assert len(done) > 10 and done[-1] == (len(text), len(text))


def test_progress_is_shown_once_it_takes_long(monkeypatch):
    monkeypatch.setattr(tokenizer, "CHUNK", 5000)
    text, seen = (BUNDLED / "calibration.txt").read_text()[:20_000], []
    encoder = data.Encoder(BUNDLED, 2048, lambda *event: seen.append(event))
    encoder(text)
    assert seen == []
    monkeypatch.setattr(tokenizer, "PATIENCE", -1)
    encoder(text)
    assert seen[-1] == (-1, "tokenize", 20_000, 20_000, None)


def test_rows_of_a_2d_file_are_the_windows(opt_folder, tmp_path):
    rows = np.random.default_rng(0).integers(3, 2048, (5, 12))
    np.save(tmp_path / "rows.npy", rows)
    model, path = icp_jax.load(opt_folder), str(tmp_path / "rows.npy")
    assert sorted(map(tuple, icp_jax.calibrate(model, path))) == sorted(map(tuple, rows))
    found = icp_jax.evaluate(model, path)
    assert (found.seq_len, found.tokens) == (12, 60)
    assert found.perplexity == icp_jax.evaluate(model, rows).perplexity
    assert icp_jax.evaluate(model, path, seq_len=30).tokens == 60  # the rows are joined
    long = np.save(tmp_path / "long.npy", rows.reshape(1, -1)) or str(tmp_path / "long.npy")
    assert icp_jax.evaluate(model, long).seq_len == 32  # longer than the context: joined
