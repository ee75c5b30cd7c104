"""icp-jax verify: what it proves about a folder, pruned here or anywhere."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from conftest import write_opt
from safetensors.numpy import load_file, save_file

import icp_jax
from icp_jax.cli import main
from icp_jax.inspection import same_bytes
from icp_jax.report import console
from icp_jax.residency import all_finite


@pytest.fixture
def pruned(tmp_path, opt_folder, tokens):
    model = icp_jax.load(opt_folder)
    done, _ = icp_jax.prune(model, tokens, method="sparsegpt", pattern="2:4")
    return icp_jax.save(done, tmp_path / "pruned")


def test_what_was_pruned_and_what_changed(pruned, opt_folder):
    facts = icp_jax.verify(pruned, source=opt_folder)
    assert facts["sparsity"] == 0.5 and facts["not_finite"] == []
    assert all("2:4" in layer["patterns"] for layer in facts["layers"])
    assert len(facts["layers"]) == 18 == len(facts["changed"])
    assert facts["missing"] == facts["added"] == facts["reshaped"] == []
    dense = icp_jax.verify(opt_folder)
    assert dense["sparsity"] < 1e-3 and all(not layer["patterns"] for layer in dense["layers"])


def test_one_weight_more_breaks_the_pattern(pruned):
    tensors = dict(load_file(pruned / "model.safetensors"))
    name = "model.decoder.layers.2.fc2.weight"
    weight = tensors[name].copy()
    row, column = np.argwhere(weight == 0)[17]
    weight[row, column] = 1
    save_file({**tensors, name: weight}, pruned / "model.safetensors", {"format": "pt"})
    layers = {layer["name"]: layer["patterns"] for layer in icp_jax.verify(pruned)["layers"]}
    assert "2:4" not in layers.pop(name)
    assert all("2:4" in patterns for patterns in layers.values())


def test_the_command(pruned, opt_folder, capsys):
    assert main(["verify", str(pruned), "--source", str(opt_folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["zeros"] == facts["size"] // 2
    assert main(["verify", str(pruned), "--source", str(opt_folder)]) == 0
    out = capsys.readouterr().out
    assert "18 tensors changed" in out and "tensors that are not finite: none" in out
    assert "changed beside the layers above: none" in out


def test_what_changed_is_said_once_for_all_blocks(tmp_path, opt_folder, tokens, capsys):
    model = icp_jax.load(opt_folder)
    done, _ = icp_jax.prune(model, tokens, sparsity=0.5)
    folder = icp_jax.save(done, tmp_path / "pruned")
    assert main(["verify", str(folder), "--source", str(opt_folder)]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("changed beside")]
    names = line.partition(": ")[2].split(", ")
    assert "model.decoder.layers.1-2.fc1.bias" in names and len(names) == 10
    assert console._ranges([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"


def test_not_finite_is_said_and_fails(tmp_path, capsys):
    folder = write_opt(tmp_path / "m", np.float32)
    tensors = dict(load_file(folder / "model.safetensors"))
    bad = tensors["model.decoder.layers.0.fc1.bias"].copy()
    bad[0] = np.nan
    tensors["model.decoder.layers.0.fc1.bias"] = bad
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert main(["verify", str(folder)]) == 2
    assert "layers.0.fc1.bias" in capsys.readouterr().out


def test_a_source_of_another_shape_is_reported(tmp_path, pruned):
    other = write_opt(tmp_path / "other", ffn_dim=64)
    facts = icp_jax.verify(pruned, source=other)
    assert "model.decoder.layers.0.fc1.weight" in facts["reshaped"]
    shutil.rmtree(other)


def test_the_pattern_of_the_record_is_looked_for(tmp_path, bundled):
    folder = write_opt(tmp_path / "model", hidden_size=40, ffn_dim=80, word_embed_proj_dim=40)
    (tmp_path / "text.txt").write_text((bundled / "calibration.txt").read_text()[:6000])
    args = ["--prune.pattern", "3:5", "--prune.method", "wanda", "--calibration.samples", "4"]
    args += ["--calibration.data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    assert main(["prune", "--model", str(folder), *args]) == 0
    layers = icp_jax.verify(tmp_path / "out")["layers"]
    assert layers and all("3:5" in layer["patterns"] for layer in layers)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int32])
def test_finite_to_the_last_number(dtype):
    size = (1 << 20) + 3  # more than is looked at together
    values = np.full(size, np.finfo(np.float16).max if dtype is not np.int32 else 7, dtype)
    assert all_finite(values) and all_finite(values[:1].reshape(())) and all_finite(values[:0])
    if dtype is not np.int32:
        for bad in (np.nan, -np.inf):
            values[-1] = bad
            assert not all_finite(values.reshape(1, -1))


def test_the_same_to_the_bit():
    a = np.array([[0.0, np.nan], [1.0, 2.0]], np.float32)
    assert same_bytes(a, a.copy()) and same_bytes(a.T, np.ascontiguousarray(a.T))
    assert not same_bytes(a, -a * -1 + 1) and not same_bytes(np.float32([0.0]), np.float32([-0.0]))
