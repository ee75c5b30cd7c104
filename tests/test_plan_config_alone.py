"""Planning with `config.json` and no weights, for every family."""

import json

import pytest
from conftest import LLAMA, OPT
from test_plan import plan
from vision import small_sam

from icp_jax.cli import main

FAMILIES = {
    "opt": OPT,
    "llama": LLAMA,
    "llama, tied": {**LLAMA, "tie_word_embeddings": True},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": None},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 8},
    "sam": small_sam.CONFIG,
}


@pytest.mark.parametrize("beside", [(), ("preprocessor_config.json", "tokenizer.json")])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_alone_is_enough_for_every_family(tmp_path, capsys, family, beside):
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[family]))
    for name in beside:
        (tmp_path / name).write_text("{}")
    options = ["--model", str(tmp_path), "--calibration.samples", "4"]
    assert main(["prune", *options, "--prune.sparsity", "0.5", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["zeros"] / found["size"] == pytest.approx(0.5, abs=1e-3)
    if not beside:
        assert plan(capsys, *options, "--prune.method", "magnitude")["peak"]["host"] > 0


def test_an_index_without_its_shards_is_no_config_alone(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    record = {"metadata": {}, "weight_map": {"model.norm.weight": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(record))
    assert main(["plan", "--model", str(tmp_path)]) == 2
    assert "a.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("data", ["wikitext2", "ptb"])
def test_text_for_a_model_of_images_is_refused_before_it_is_planned(tmp_path, capsys, data):
    (tmp_path / "config.json").write_text(json.dumps(small_sam.CONFIG))
    assert main(["plan", "--model", str(tmp_path), "--calibration.data", data]) == 2
    assert f"reads images, not {data}" in capsys.readouterr().err
