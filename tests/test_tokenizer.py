"""Tokenizers: nothing that a folder brings is run, and one line says what is lacking."""

import json
import shutil

import numpy as np
import pytest
from conftest import write_opt

from icp_jax.cli import main
from icp_jax.data.tokenizer import load_tokenizer
from icp_jax.demo import BUNDLED
from icp_jax.errors import InputError


def spoil(folder, name, **changes):
    path = folder / name
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**before, **changes}))


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model, a text, and a module that leaves a mark where it is run."""
    folder = write_opt(tmp_path / "model")
    (tmp_path / "text.txt").write_text((BUNDLED / "heldout.txt").read_text()[:2000])
    code = f"open({str(tmp_path / 'RAN')!r}, 'w')\nclass T: pass\n"
    for name in ("own.py", "tokenization_own.py", "data.py"):
        (folder / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    return folder


def evaluated(capsys, *args):
    status = main(["eval", "model", "--data", "text.txt", "--json", *args])
    out, err = capsys.readouterr()
    return status, out, err


AUTO = {"auto_map": {name: "own.T" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")}}


@pytest.mark.parametrize(
    "name, changes",
    [
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.T", None]}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "own.T"]}}),
        ("config.json", AUTO),
    ],
)
def test_code_in_a_model_folder(model, capsys, monkeypatch, name, changes):
    def ask(*args):
        raise AssertionError("asked")

    monkeypatch.setattr("builtins.input", ask)
    spoil(model, name, **changes)
    spoil(model, "tokenizer_config.json", tokenizer_class="T")
    status, out, err = evaluated(capsys)
    assert not (model.parent / "RAN").exists()
    assert status == 0 and json.loads(out)["tokens"] > 0
    assert err.splitlines() == ["evaluate"]


def test_a_tokenizer_that_needs_code_is_refused(model):
    spoil(model, "config.json", model_type="own", **AUTO)
    spoil(model, "tokenizer_config.json", tokenizer_class="T", **AUTO)
    with pytest.raises(InputError, match="needs its own code, which is never run") as found:
        load_tokenizer(model)
    assert "trust_remote_code" not in str(found.value)
    assert not (model.parent / "RAN").exists()


def test_code_in_a_data_folder(model, capsys):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["some words " * 99]}).save_to_disk("rows")
    for name in ("rows.py", "dataset_infos.json"):
        shutil.copy(model / "own.py", f"rows/{name}")
    status, out, _ = evaluated(capsys, "--data", "rows")
    assert status == 0 and json.loads(out)["tokens"] > 0
    shutil.copytree(model, "script")
    for name in ("script", "model"):
        status, out, err = evaluated(capsys, "--data", name)
        assert status == 2 and out == "" and len(err.splitlines()) == 1
    assert not (model.parent / "RAN").exists()


def test_byte_order_marks_of_a_model_folder(model, capsys):
    plain = evaluated(capsys)
    for name in ("config.json", "tokenizer_config.json"):
        path = model / name
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert plain[0] == 0 and evaluated(capsys) == plain


def test_a_sentencepiece_model_alone(model, capsys, monkeypatch):
    monkeypatch.setattr("icp_jax.data.tokenizer._installed", lambda name: False)
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (model / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    status, out, err = evaluated(capsys)
    assert (status, out) == (2, "") and len(err.splitlines()) == 1
    assert "pip install sentencepiece protobuf" in err
    np.save("ids.npy", np.arange(64))
    assert evaluated(capsys, "--data", "ids.npy")[0] == 0
