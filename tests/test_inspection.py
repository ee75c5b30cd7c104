"""icp-jax verify: what it proves about a folder, pruned here or anywhere."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from conftest import write_opt
from safetensors.numpy import load_file, save_file

import icp_jax
from converters.safetensors_files import SafetensorsReader
from icp_jax.cli import console_files, main
from icp_jax.runs.convert import convert
from icp_jax.runs.verify_export import same_bytes
from icp_jax.streaming.finite import all_finite


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
    assert "other changed tensors: none" in out


def test_what_changed_is_said_once_for_all_blocks(tmp_path, opt_folder, tokens, capsys):
    model = icp_jax.load(opt_folder)
    done, _ = icp_jax.prune(model, tokens, sparsity=0.5)
    folder = icp_jax.save(done, tmp_path / "pruned")
    assert main(["verify", str(folder), "--source", str(opt_folder)]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("other changed")]
    names = line.partition(": ")[2].split(", ")
    assert "model.decoder.layers.1-2.fc1.bias" in names and len(names) == 10
    assert console_files._ranges([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"


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
    args = ["--pattern", "3:5", "--method", "wanda", "--samples", "4"]
    args += ["--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    assert main(["prune", str(folder), *args]) == 0
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


def edited(folder, change):
    tensors = dict(load_file(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


LAYER = "model.decoder.layers.1."
BROKEN = {
    "missing": lambda t: t.pop(f"{LAYER}fc1.bias"),
    "unexpected": lambda t: t.update({f"{LAYER}fc1.weight_mask": t[f"{LAYER}fc1.weight"]}),
    "misshapen": lambda t: t.update({f"{LAYER}fc1.weight": t[f"{LAYER}fc1.weight"][:-1].copy()}),
    "missing anchor": lambda t: t.pop("model.decoder.embed_tokens.weight"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_files_that_break_the_promise_of_their_config(tmp_path, capsys, kind):
    folder = write_opt(tmp_path / "m")
    whole = icp_jax.verify(folder)
    edited(folder, BROKEN[kind])
    facts, key = icp_jax.verify(folder), kind.split()[0]
    wrong = {k: v for k in ("missing", "unexpected", "misshapen") if (v := facts[k])}
    assert list(wrong) == [key] and len(wrong[key]) == 1 and not any(whole[k] for k in wrong)
    assert main(["verify", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"m is not a valid checkpoint: {key}: {wrong[key][0]}" in line


def test_a_config_of_more_layers_than_there_are(tmp_path, capsys):
    folder = write_opt(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    assert main(["verify", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "is not a valid checkpoint: missing: model.decoder.layers.3." in line
        and "and 30 more" in line
    )


def test_readers_are_closed_on_every_path(tmp_path, opt_folder, monkeypatch):
    opened, closed = [], []
    init, close = SafetensorsReader.__init__, SafetensorsReader.close
    monkeypatch.setattr(
        SafetensorsReader, "__init__", lambda self, *a: (opened.append(self), init(self, *a))[1]
    )
    monkeypatch.setattr(SafetensorsReader, "close", lambda self: (closed.append(self), close(self)))
    tokens = np.zeros((1, 8), np.int32)

    def fails(*args, **kwargs):
        raise RuntimeError("in the middle")

    model = icp_jax.load(opt_folder)
    icp_jax.verify(opt_folder, opt_folder)
    icp_jax.evaluate(opt_folder, tokens)
    for where, act in {
        "icp_jax.api.perplexity": lambda: icp_jax.evaluate(opt_folder, tokens),
        "icp_jax.runs.convert.save_tree": lambda: convert(opt_folder, tmp_path / "o"),
        "icp_jax.api.Model": lambda: icp_jax.load(opt_folder),
        "icp_jax.streaming.source.table_for": lambda: icp_jax.load(opt_folder),
        "icp_jax.runs.verify._facts": lambda: icp_jax.verify(opt_folder, opt_folder),
        "converters.safetensors_files.Writer.write": lambda: icp_jax.save(model, tmp_path / "s"),
    }.items():
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="in the middle"):
            patch.setattr(where, fails)
            act()
    assert opened and set(map(id, opened)) == set(map(id, closed))
    assert list(tmp_path.iterdir()) == []
