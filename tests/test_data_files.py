"""Files of every kind: what of them is read, and what is refused by row."""

import bz2
import gzip
import json
import logging

import numpy as np
import pytest
from test_data import TEXT, calibrate, encode

from icp_jax import data
from icp_jax.errors import InputError


def evaluate(path, seq_len=8):
    return data.evaluation_windows(str(path), seq_len, 64, encode)


def lines(rows):
    return "\n".join(map(json.dumps, rows))


def saved(folder, rows):
    datasets = pytest.importorskip("datasets")
    if isinstance(rows, dict):
        splits = {name: datasets.Dataset.from_list(part) for name, part in rows.items()}
        datasets.DatasetDict(splits).save_to_disk(str(folder))
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(folder))
    return folder


def parquet(path, rows):
    pytest.importorskip("datasets").Dataset.from_list(rows).to_parquet(str(path))
    return path


def written(path, content):
    path.write_bytes(content)
    return path


FORMS = {
    "rows.jsonl": lambda p, rows: written(p, lines(rows).encode()),
    "ROWS.JSONL": lambda p, rows: written(p, lines(rows).encode()),
    "mark.jsonl": lambda p, rows: written(p, lines(rows).encode("utf-8-sig")),
    "c4-train.00000-of-01024.json.gz": lambda p, r: written(p, gzip.compress(lines(r).encode())),
    "rows.json": lambda p, rows: written(p, json.dumps(rows, indent=1).encode()),
    "rows": lambda p, rows: written(p, lines(rows).encode()),
    "rows.jsonl.bz2": lambda p, rows: written(p, bz2.compress(lines(rows).encode())),
    "packed.jsonl": lambda p, rows: written(p, gzip.compress(lines(rows).encode())),
    "rows.parquet": parquet,
    "folder": saved,
}


@pytest.mark.parametrize("name", FORMS)
def test_a_text_is_the_same_in_every_form(tmp_path, name):
    rows = [{"text": TEXT[:40]}, {"text": TEXT[40:]}]
    got = evaluate(FORMS[name](tmp_path / name, rows))
    np.testing.assert_array_equal(got.ravel(), encode(TEXT[:40] + "\n\n" + TEXT[40:])[:88])


@pytest.mark.parametrize("name", FORMS)
def test_masked_tokens_are_left_out_in_every_form(tmp_path, name):
    ids = np.arange(1, 121).reshape(10, 12)
    mask = (np.arange(12) < 8)[None].repeat(10, 0).astype(int)
    mask[:, 0], mask[:, 8] = 0, 1  # on either side
    rows = [
        {"input_ids": i.tolist(), "attention_mask": m.tolist()}
        for i, m in zip(ids, mask, strict=True)
    ]
    path = FORMS[name](tmp_path / name, rows)
    np.testing.assert_array_equal(evaluate(path), ids[:, 1:9])
    np.testing.assert_array_equal(calibrate(path, samples=10), ids[:, 1:9])


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.txt.gz", "a", "wiki.test.raw"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_texts(tmp_path, name, encoding):
    content = TEXT.encode(encoding)
    content = gzip.compress(content) if name.endswith("gz") else content
    got = evaluate(written(tmp_path / name, content))
    np.testing.assert_array_equal(got.ravel(), encode(TEXT)[:88])


BAD = {
    "surrogate": ('{"text": "ab"}\n{"text": "a\\ud83d"}', "line 2: invalid Unicode"),
    "text that is a list": ('{"text": "ab"}\n\n{"text": ["a"]}', "line 3: 'text' must be a string"),
    "nested ids": ("[1, 2]\n[[3], [4]]", "expected a flat list"),
    "mask of another length": (
        '{"input_ids": [1, 2], "attention_mask": [1]}', "line 1: attention_mask must have"),
    "mask of other values": (
        '{"input_ids": [1, 2], "attention_mask": [1, 5]}', "line 1: attention_mask must have"),
    "mask that is no list": (
        '{"input_ids": [1, 2], "attention_mask": 1}', "line 1: attention_mask must have"),
    "empty rows alone": ('{"text": ""}\n{"text": null}', "no text or tokens, only 2 empty rows"),
    "nothing": ("", "has no text or tokens, only 0 empty rows"),
    "masked whole": (
        '{"input_ids": [1, 2], "attention_mask": [0, 0]}', "only 1 empty rows"),
    "no text": ('{"label": 3}', "line 1 has neither 'text' nor 'input_ids'"),
    "ids beyond int64": ('{"input_ids": [99999999999999999999]}', "expected a flat list"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(tmp_path, name):
    content, said = BAD[name]
    with pytest.raises(InputError, match=said):
        evaluate(written(tmp_path / "a.jsonl", content.encode()))


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"text": ["a b"]}, {"text": ["c"]}], "row 1: 'text' must be a string"),
        ([{"text": None}], "only 1 empty rows"),
        ([{"text": ""}, {"text": ""}], "only 2 empty rows"),
        ([{"input_ids": [1], "attention_mask": [1, 1]}], "row 1: attention_mask must have"),
        ([{"label": 1}], r"has columns \['label'\]: rename one to text, input_ids or messages"),
        ([], "has a dataset without rows"),
        ({"train": [{"text": "a"}], "test": []}, "has a dataset without rows"),
    ],
)
def test_bad_rows_of_a_folder(tmp_path, rows, said):
    with pytest.raises(InputError, match=said):
        evaluate(saved(tmp_path / "d", rows))


@pytest.mark.parametrize("form", ["a.jsonl", "folder"])
def test_empty_rows_are_counted(tmp_path, caplog, form):
    rows = [{"text": TEXT}, {"text": None}, {"text": ""}, {"text": None}]
    with caplog.at_level(logging.WARNING, "icp_jax"):
        got = evaluate(FORMS.get(form, FORMS["rows.jsonl"])(tmp_path / form, rows))
    np.testing.assert_array_equal(got.ravel(), encode(TEXT + "\n\n")[:88])
    assert [r.getMessage() for r in caplog.records] == [f"{tmp_path / form}: 3 rows are empty"]


def split(name):
    return [{"input_ids": [k] * 8} for k in (len(name), len(name) + 1)]


@pytest.mark.parametrize(
    "there, evaluated, calibrated",
    [
        (("train", "validation", "test"), "test", "train"),
        (("train", "validation"), "validation", "train"),
        (("train", "dev"), "dev", "train"),
        (("train",), None, "train"),
        (("test",), "test", None),
        (("one", "two"), None, None),
    ],
)
def test_splits(tmp_path, there, evaluated, calibrated):
    folder = saved(tmp_path / "d", {name: split(name) for name in there})
    for chosen, read in (
        (evaluated, lambda: evaluate(folder)),
        (calibrated, lambda: calibrate(folder, samples=2)),
    ):
        if chosen is None:
            with pytest.raises(InputError, match=f"only {', '.join(there)}: give a split's folder"):
                read()
        else:
            want = [row["input_ids"] for row in split(chosen)]
            np.testing.assert_array_equal(read(), want)
