"""The hub: what of a repository is downloaded, and one line whatever goes wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_opt

import icp_jax

CALLS = Path(__file__).with_name("hub_calls.py")
BROKEN = {
    "401": r"\(401\): check the name, or run `hf auth login`",
    "403": r"denied \(403\)",
    "404": r"unknown name or file \(404\)",
    "429": r"too many requests \(429\)",
    "503": r"error \(503\)",
    "page": "unexpected response, maybe from a proxy",
    "other": "unexpected response, maybe from a proxy",
    "silent": "the hub timed out",
    "gone": "connection was lost",
    "half": "connection was lost",
}
ASKING = {
    "eval": ["eval", "some/model", "--data", "ids.npy"],
    "verify": ["verify", "model"],
    "plan": ["plan", "some/model"],
    "data set": ["eval", "MODEL", "--data", "wikitext2"],
}


def calls(jobs, place, **environment):
    done = subprocess.run(
        [sys.executable, CALLS, json.dumps(jobs)],
        cwd=place,
        env={**os.environ, "HF_HOME": str(place / "cache"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def answers(tmp_path_factory, opt_folder):
    """What every command says to every hub."""
    place = tmp_path_factory.mktemp("hub")
    np.save(place / "ids.npy", np.arange(64))
    jobs = {
        (mode, name): [mode, [str(opt_folder) if a == "MODEL" else a for a in arguments]]
        for mode in BROKEN
        for name, arguments in ASKING.items()
    }
    return dict(zip(jobs, calls(list(jobs.values()), place), strict=True))


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize("mode", BROKEN)
def test_a_hub_that_misbehaves(answers, mode, name):
    status, out, err, asked = answers[mode, name]
    assert status == 2 and out == "" and asked
    (line,) = err.splitlines()
    assert re.search(BROKEN[mode], line) and len(line) < 300, line


def test_no_connection(tmp_path):
    jobs = [["404", ASKING["eval"]]]
    code = CALLS.read_text().replace(
        'f"http://127.0.0.1:{server.server_address[1]}"', '"http://127.0.0.1:9"'
    )
    (tmp_path / "refused.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "refused.py", json.dumps(jobs)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    ((status, out, err, _),) = json.loads(done.stdout)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1 and "no connection to the hub" in err


@pytest.fixture
def served(tmp_path):
    """A repository with shards, and beside them all that a hub's repository may hold."""
    folder = write_opt(tmp_path / "served", shard_bytes=60_000)
    for name in ("consolidated.safetensors", "pytorch_model.bin", "optimizer.pt", "m.gguf"):
        (folder / name).write_bytes(b"not to be read")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "tokenization_own.py").write_text("raise SystemExit")
    np.save(tmp_path / "ids.npy", np.arange(64))
    return folder


def test_only_what_is_used_is_downloaded_and_kept(served, tmp_path):
    here, lost = calls(
        [["serve", ASKING["eval"]], ["gone", ASKING["eval"]]], tmp_path, SERVED=str(served)
    )
    assert here[0] == 0, here
    assert lost[:2] == here[:2]  # from the cache
    (snapshot,) = (tmp_path / "cache" / "hub" / "models--some--model" / "snapshots").iterdir()
    shards = {p.name for p in served.glob("model-*.safetensors")}
    small = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in snapshot.iterdir()} == shards | small | {"model.safetensors.index.json"}


def test_a_packed_model_is_downloaded_as_it_is(served, tmp_path):
    icp_jax.pack(served, tmp_path / "packed")
    (here,) = calls([["serve", ASKING["eval"]]], tmp_path, SERVED=str(tmp_path / "packed"))
    assert here[0] == 0, here
    names = {path.name for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert names == {path.name for path in (tmp_path / "packed").glob("model-*.safetensors")}


def test_a_download_that_breaks_off(served, tmp_path):
    (result,) = calls([["break", ASKING["eval"]]], tmp_path, SERVED=str(served))
    assert result[:2] == [2, ""]
    assert len(result[2].splitlines()) == 1 and "was lost" in result[2], result


@pytest.mark.parametrize(
    "index, said",
    [
        ("{", "is not a checkpoint index"),
        ('{"weight_map": {"a": "../up"}}', "no file '../up', which its"),
    ],
)
def test_an_index_that_names_what_is_not_there(served, tmp_path, index, said):
    (served / "model.safetensors.index.json").write_text(index)
    (result,) = calls([["serve", ASKING["eval"]]], tmp_path, SERVED=str(served))
    assert result[:2] == [2, ""] and said in result[2], result
