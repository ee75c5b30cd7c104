"""Calibration windows and evaluation windows, from every kind of data."""

import gzip
import json
import sys
import types

import numpy as np
import pytest

from icp_jax import data
from icp_jax.config import CalibrationConfig


def encode(piece):
    """A token a character; a document starts with 999, as tokenizers put BOS."""
    if isinstance(piece, str):
        return np.asarray([999, *map(ord, piece)], np.int32)
    return np.asarray(piece, np.int32)


def calibrate(path, samples=6, seq_len=8, seed=0):
    config = CalibrationConfig(str(path), samples, seq_len, seed)
    return data.calibration_tokens(config, 64, encode)


TEXT = "".join(chr(200 + k) for k in range(90))


def is_window(row, ids):
    return any(np.array_equal(row, ids[k : k + len(row)]) for k in range(len(ids)))


def test_a_text_gives_windows_from_anywhere(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    tokens = calibrate(tmp_path / "a.txt", samples=20)
    assert tokens.shape == (20, 8) and tokens.dtype == np.int32
    assert all(is_window(row, encode(TEXT)) for row in tokens)
    assert len({row[0] for row in tokens}) > 5
    np.testing.assert_array_equal(tokens, calibrate(tmp_path / "a.txt", samples=20))
    assert not np.array_equal(tokens, calibrate(tmp_path / "a.txt", samples=20, seed=1))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_documents_longer_than_the_window_are_drawn_from(tmp_path, name):
    documents = ["short", "x" * 30, "no", "y" * 40]
    lines = "\n".join(json.dumps({"text": d}) for d in documents)
    opened = gzip.open if name.endswith("gz") else open
    with opened(tmp_path / name, "wt") as file:
        file.write(lines)
    tokens = calibrate(tmp_path / name, samples=40)
    assert all(
        is_window(row, encode("x" * 30)) or is_window(row, encode("y" * 40)) for row in tokens
    )
    assert {ord("x"), ord("y")} <= set(tokens.ravel())


def test_short_documents_are_joined(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": "abc"}) for _ in range(9)))
    joined = encode("\n\n".join(["abc"] * 9))
    assert all(is_window(row, joined) for row in calibrate(tmp_path / "a.jsonl"))


def test_token_ids(tmp_path):
    rows = np.arange(60).reshape(3, 20)
    np.save(tmp_path / "flat.npy", rows.ravel())
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"input_ids": r.tolist()}) for r in rows)
    )
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(r.tolist()) for r in rows))
    assert all(is_window(row, rows.ravel()) for row in calibrate(tmp_path / "flat.npy"))
    for name in ("rows.npy", "a.jsonl", "b.jsonl"):
        assert all(any(is_window(row, r) for r in rows) for row in calibrate(tmp_path / name))


def test_arrow_folders(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["x" * 30, "y" * 40]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "flat"))
    split = {"train": datasets.Dataset.from_dict(rows)}
    datasets.DatasetDict(split).save_to_disk(str(tmp_path / "split"))
    for name in ("flat", "split"):
        assert calibrate(tmp_path / name).shape == (6, 8)


def test_evaluation_windows_do_not_overlap(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    windows = data.evaluation_windows(str(tmp_path / "a.txt"), 8, 64, encode)
    np.testing.assert_array_equal(windows.ravel(), encode(TEXT)[:88])


def test_the_window_is_the_context_up_to_2048():
    assert data.window(None, 512) == 512
    assert data.window(None, 8192) == 2048
    assert data.window(4096, 8192) == 4096


class Rows(dict):
    """What the tests' stand-in for `datasets` gives: columns, and slices of rows."""

    def __getitem__(self, key):
        if isinstance(key, slice):
            return {name: column[key] for name, column in self.items()}
        return super().__getitem__(key)


@pytest.mark.parametrize("name", data.HUB)
def test_hub_names_ask_datasets_for_what_the_papers_use(monkeypatch, name):
    asked = []

    def load_dataset(path, *args, **options):
        asked.append((path, *args, options))
        text = ["u" * 50, "v" * 60] * 600
        return Rows(text=text, sentence=text)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert calibrate(name).shape == (6, 8)
    windows = data.evaluation_windows(name, 8, 64, encode)
    assert windows.shape[1] == 8
    if name == "c4":
        assert len(windows) == 256  # as SparseGPT and its successors read it
    path = {"c4": "allenai/c4", "ptb": "ptb-text-only/ptb_text_only"}.get(
        name, "Salesforce/wikitext"
    )
    assert [call[0] for call in asked] == [path, path]
    assert asked[0] != asked[1]
