"""From folder to folder: what transformers loads, what stays as it was, what is written beside."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from conftest import write_opt
from safetensors.numpy import load_file

import icp_jax
from icp_jax import CalibrationConfig, PruneConfig, RunConfig
from icp_jax.cli import main
from icp_jax.evaluation.perplexity import Perplexity
from icp_jax.runs.run import prune_folder


def config_for(model, out, data, **prune):
    return RunConfig(
        model=str(model),
        out=str(out),
        prune=PruneConfig(**({} if "pattern" in prune else {"sparsity": 0.5}) | prune),
        calibration=CalibrationConfig(str(data), samples=4),
    )


@pytest.fixture
def text(bundled, tmp_path):
    (tmp_path / "text.txt").write_text((bundled / "calibration.txt").read_text()[:6000])
    return tmp_path / "text.txt"


def tensors(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("method", ["icp", "wanda"])
def test_folder_to_folder(tmp_path, text, dtype, method):
    source = write_opt(tmp_path / "m", dtype, shard_bytes=90_000)
    (source / "generation_config.json").write_text("{}\n")
    done = prune_folder(config_for(source, tmp_path / "out", text, method=method))
    before, after = tensors(source), tensors(done.out)
    assert list(before) == list(after)
    names = {p.name for p in source.iterdir()} | {"icp_run.json", "report.html"}
    assert {p.name for p in done.out.iterdir()} == names
    zeros = size = 0
    for name, old in before.items():
        new = after[name]
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        if ".layers." in name and name.endswith("weight") and "norm" not in name:
            zeros, size = zeros + (new == 0).sum(), size + new.size
        elif ".layers." not in name or ".layers.0." in name or method == "wanda":
            assert new.tobytes() == old.tobytes(), name
    assert zeros / size == done.sparsity == pytest.approx(0.5, abs=1e-4)
    record = json.loads((done.out / "icp_run.json").read_text())
    assert record["sparsity"] == done.sparsity and record["config"]["prune"]["method"] == method
    assert len(record["blocks"]) == 3 and len(record["blocks"][0]["layers"]) == 6
    assert (record["blocks"][1]["compensation"] is not None) == (method == "icp")
    assert sorted(record["inputs"]["weights"]) == sorted(
        p.name for p in source.glob("*.safetensors")
    )


@pytest.mark.needs_torch
def test_transformers_loads_it_and_agrees(tmp_path, text, opt_folder):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = prune_folder(config_for(opt_folder, tmp_path / "out", text)).out
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    AutoTokenizer.from_pretrained(out)
    ids = np.random.default_rng(0).integers(3, 2048, (2, 30))
    with torch.no_grad():
        want = theirs(torch.from_numpy(ids)).logits.numpy()
    ours = icp_jax.load(out).logits(ids)
    np.testing.assert_allclose(ours, want, atol=1e-4)
    stored = AutoModelForCausalLM.from_pretrained(out)
    assert stored.dtype == torch.float16


@pytest.mark.needs_torch
def test_a_bin_checkpoint_comes_out_as_safetensors(tmp_path, text, opt_folder):
    torch = pytest.importorskip("torch")
    source = tmp_path / "bin"
    shutil.copytree(opt_folder, source)
    state = {k: torch.from_numpy(v) for k, v in tensors(source).items()}
    (source / "model.safetensors").unlink()
    torch.save(state, source / "pytorch_model.bin")
    from_bin = prune_folder(config_for(source, tmp_path / "a", text)).out
    from_safe = prune_folder(config_for(opt_folder, tmp_path / "b", text)).out
    assert not (from_bin / "pytorch_model.bin").exists()
    a, b = tensors(from_bin), tensors(from_safe)
    assert a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def test_the_same_run_gives_the_same_bytes_by_folder_and_in_memory(tmp_path, text, opt_folder):
    config = config_for(opt_folder, tmp_path / "a", text)
    first = prune_folder(config).out
    model = icp_jax.load(opt_folder)
    tokens = icp_jax.calibrate(model, str(text), samples=4)
    pruned, _ = icp_jax.prune(model, tokens, config.prune)
    second = icp_jax.save(pruned, tmp_path / "b")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_patterns_in_the_file(tmp_path, text, opt_folder):
    out = prune_folder(config_for(opt_folder, tmp_path / "out", text, pattern="2:4")).out
    weight = tensors(out)["model.decoder.layers.1.fc2.weight"]
    assert np.all((weight != 0).reshape(len(weight), -1, 4).sum(2) == 2)


def test_json_output_is_one_object(tmp_path, text, opt_folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calibration = ["--data", str(text), "--samples", "4"]
    prune = ["prune", str(opt_folder), "out", "--sparsity", ".5"]
    assert main([*prune, *calibration, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert main([*prune, *calibration, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert set(done) == {"out", "sparsity", "seconds"}
    assert plan["zeros"] / plan["size"] == done["sparsity"]
    assert main(["eval", "out", "--data", str(text), "--json"]) == 0
    assert tuple(json.loads(capsys.readouterr().out)) == Perplexity._fields
    assert main(["convert", "out", "orbax", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "Orbax checkpoint"


@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_orbax_round_trip_is_bit_exact(tmp_path, shard_bytes, dtype, capsys):
    source = write_opt(tmp_path / "m", dtype, shard_bytes)
    orbax, back = tmp_path / "orbax", tmp_path / "back"
    assert main(["convert", str(source), str(orbax)]) == 0
    assert main(["convert", str(orbax), str(back)]) == 0
    assert "Hugging Face folder" in capsys.readouterr().out
    assert sorted(p.name for p in back.iterdir()) == sorted(p.name for p in source.iterdir())
    for path in source.iterdir():
        assert path.read_bytes() == (back / path.name).read_bytes(), path.name


def test_config_files_are_overridden_by_the_command_line(tmp_path, capsys):
    assert main(["prune", "--config", "opt_pydoc", "--sparsity", "0.6", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["zeros"] / plan["size"] == pytest.approx(0.6, abs=1e-6)
    assert plan["method"] == "icp" and plan["samples"] == 128
