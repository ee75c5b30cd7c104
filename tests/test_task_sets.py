"""Task sets in a folder: every form in which people have them, and what is said of the others."""

import bz2
import gzip
import json

import datasets
import pytest

from icp_jax.data import task_sets
from icp_jax.errors import InputError

ROWS = [{"passage": f"p {k}", "question": "q", "label": k % 2} for k in range(3)]
BOOLQ = ("boolq", "aps/super_glue", "boolq", "validation")


def lines(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows)


def saved(folder):
    datasets.disable_progress_bars()
    return datasets.Dataset.from_list(ROWS), folder


def as_dict(folder):
    rows, _ = saved(folder)
    datasets.DatasetDict({"validation": rows}).save_to_disk(folder / "boolq")


def as_split(folder):
    saved(folder)[0].save_to_disk(folder / "super_glue" / "boolq" / "validation")


def as_lone_config(folder):
    saved(folder)[0].save_to_disk(folder / "boolq" / "none" / "validation")


def as_parquet(folder):
    place = folder / "aps" / "super_glue" / "boolq"
    place.mkdir(parents=True)
    rows, _ = saved(folder)
    rows.select([0, 1]).to_parquet(place / "validation-00000-of-00002.parquet")
    rows.select([2]).to_parquet(place / "validation-00001-of-00002.parquet")


def as_lines(folder):
    (folder / "boolq" / "data").mkdir(parents=True)
    (folder / "boolq" / "data" / "validation.jsonl.gz").write_bytes(gzip.compress(lines().encode()))


def as_array(folder):
    (folder / "boolq").mkdir()
    (folder / "boolq" / "validation.json").write_text(json.dumps(ROWS))


def as_file(folder):
    (folder / "boolq_dev.jsonl").write_text(lines())


FORMS = [as_dict, as_split, as_lone_config, as_parquet, as_lines, as_array, as_file]


@pytest.mark.parametrize("write", FORMS)
def test_a_set_is_found_in_every_form(tmp_path, write):
    write(tmp_path)
    found = task_sets.load(tmp_path, *BOOLQ)
    assert list(found) == ["validation"] and list(found["validation"]) == ROWS


def test_columns_of_other_forms_are_renamed(tmp_path):
    (tmp_path / "boolq.jsonl").write_text(lines([{"answer": True}, {"answer": False}]))
    assert task_sets.load(tmp_path, *BOOLQ)["validation"]["label"][:] == [1, 0]
    (tmp_path / "lambada_openai.jsonl").write_text(lines([{"context": "a b", "continuation": "c"}]))
    found = task_sets.load(tmp_path, "lambada_openai", "EleutherAI/lambada_openai", None, "test")
    assert found["test"]["text"][:] == ["a b c"]


HELLASWAG = ("hellaswag", "Rowan/hellaswag", None, "validation")


def test_hellaswag_as_text(tmp_path):
    begun = ["Roof: A man is on a roof. he", "3", "w", "x", "y", "z"]
    whole = ["Home: How to see. Open your eyes.", "0", "1", "2", "3", "4"]
    text = "\n".join([*begun, *whole, ""]).encode()
    (tmp_path / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(text))
    first, second = task_sets.load(tmp_path, *HELLASWAG)["validation"]
    assert (first["ctx_a"], first["ctx_b"]) == ("A man is on a roof.", "he")
    assert (first["activity_label"], first["label"]) == ("Roof", "3")
    assert first["endings"] == ["w", "x", "y", "z"]
    assert (second["ctx_a"], second["ctx_b"]) == ("How to see. Open your eyes.", "")
    (tmp_path / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(text.replace(b"3", b"no")))
    with pytest.raises(InputError, match="line 2 is not the number of an ending"):
        task_sets.load(tmp_path, *HELLASWAG)


def broken_line(folder):
    (folder / "boolq.jsonl").write_text(lines() + "{\n")


def no_rows(folder):
    (folder / "boolq").mkdir()
    (folder / "boolq" / "validation.jsonl").write_text("")


def not_parquet(folder):
    (folder / "boolq").mkdir()
    (folder / "boolq" / "validation.parquet").write_text("PAR")


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda folder: folder.rmdir(), "no folder .*: give the folder that holds"),
        (lambda folder: None, "no set for the task boolq: put its splits into the folder boolq or"),
        (broken_line, "line 4 is not JSON: fix or remove it"),
        (no_rows, "has no rows in validation: give other data"),
        (not_parquet, "the set of boolq in .* cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, spoil, said):
    folder = tmp_path / "sets"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(InputError, match=said) as found:
        task_sets.load(folder, *BOOLQ)
    assert "\n" not in str(found.value)
