"""The choice of layers from folder to folder: what is left as it is, and what a run says of it."""

import dataclasses
import json
import re

import numpy as np
import pytest
from conftest import write_opt
from runs import helpful
from safetensors.numpy import load_file
from sweeps import small_sweep
from vision import small_sam

import icp_jax
from icp_jax import CalibrationConfig, PruneConfig, QuantConfig, RunConfig
from icp_jax.cli import main
from icp_jax.cli.options import run_config
from icp_jax.cli.parse import parse
from icp_jax.config import MemoryConfig, check, filled
from icp_jax.errors import Kept
from icp_jax.runs.run import dry_run, prune_folder

EXCLUDED = ("*.k_proj", "*.fc1")


@pytest.fixture
def data(tmp_path):
    """Token ids: six windows of 16."""
    np.save(tmp_path / "ids.npy", np.arange(96).reshape(6, 16))
    return str(tmp_path / "ids.npy")


def config_for(model, out, data, quant=None, **prune):
    return RunConfig(
        model=str(model),
        out=str(out),
        prune=PruneConfig(**{"method": "sparsegpt", **prune}),
        quant=quant or QuantConfig(),
        calibration=CalibrationConfig(data, seq_len=16),
    )


def is_left(name, blocks=()):
    return name.endswith(("k_proj.weight", "fc1.weight")) or any(f".{b}." in name for b in blocks)


def kernels(folder):
    found = load_file(folder / "model.safetensors")
    return {k: v for k, v in found.items() if re.search(r"layers\.\d+\..*(proj|fc\d)\.weight", k)}


@pytest.mark.parametrize("method", ["icp", "sparsegpt", "magnitude"])
def test_layers_are_left_and_the_total_is_told(opt_folder, tmp_path, data, capsys, method):
    out = tmp_path / "out"
    line = ["prune", str(opt_folder), str(out), "--data", data, "--method", method, "--quiet"]
    line += ["--sparsity", "0.5", "--exclude", ",".join(EXCLUDED), "--keep-first", "1"]
    line += ["--sparsity-of", "*.fc2=0.3", "--sparsity-of", "blocks.2.fc2=0.4"]
    assert main(line) == 0
    said = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("sparsity"))
    zeros = pruned_zeros = size = pruned_size = 0
    before, after = kernels(opt_folder), kernels(out)
    for name, old in before.items():
        new = after[name]
        found = np.sum(new == 0)
        zeros, size = zeros + found, size + new.size
        if is_left(name, blocks=(0,)):
            # compensation tunes what is left, but for the blocks up to the first pruned one
            assert (new.tobytes() == old.tobytes()) or (method == "icp" and ".2." in name), name
            continue
        pruned_zeros, pruned_size = pruned_zeros + found, pruned_size + new.size
        if name.endswith("fc2.weight"):
            assert found == round((0.4 if ".2." in name else 0.3) * new.size)
    assert pruned_zeros == round(0.5 * pruned_size)
    total = f"{zeros / size:.6f}"
    assert said == f"sparsity     {total} (0.500000 of the layers that are pruned)"
    record = json.loads((out / "icp_run.json").read_text())
    assert record["pruned_sparsity"] == pruned_zeros / pruned_size
    assert len(record["left"]) == sum(is_left(name, blocks=(0,)) for name in before)
    assert "50.0% of the layers that were pruned" in (out / "report.html").read_text()
    assert icp_jax.verify(out)["sparsity"] == pytest.approx(float(total), abs=1e-6)


def test_a_dry_run_shows_the_counts_of_the_run(opt_folder, tmp_path, data, capsys):
    config = config_for(opt_folder, tmp_path / "out", data, sparsity=0.5, exclude=EXCLUDED)
    found = dry_run(config)
    assert found.pruned_sparsity == pytest.approx(0.5, abs=1e-4)
    done = prune_folder(config)
    assert done.sparsity == found.zeros / found.size
    rows = {(row["block"], row["layer"]): row for row in found.layers}
    for block in done.blocks:
        for layer in block.layers:
            row = rows[block.block, layer.name]
            assert row["left"] == (layer.name in ("k_proj", "fc1"))
            assert row["left"] or row["zeros"] == layer.zeros
    words = ["--data", data, "--sparsity", "0.5", "--exclude", "*.fc1", "--dry-run"]
    assert main(["prune", str(opt_folder), *words]) == 0
    out = capsys.readouterr().out
    assert re.search(r"fc1 .* left", out) and "(0.500000 of the layers that are pruned)" in out


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_left_is_not_quantized_nor_packed(tmp_path, data, symmetric):
    model = write_opt(tmp_path / "m", hidden_size=64, word_embed_proj_dim=64)
    quant = QuantConfig(bits=4, group=32, symmetric=symmetric, packed=True)
    given = {"pattern": "2:4", "exclude": EXCLUDED}
    out = prune_folder(config_for(model, tmp_path / "out", data, quant, **given)).out
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    for name in kernels(model):
        if is_left(name):
            assert before[name].tobytes() == after[name].tobytes()
        else:
            assert f"{name}_packed" in after and name not in after
        assert is_left(name) == (name.removesuffix(".weight") in ignored)
    for layer in icp_jax.verify(out)["layers"]:
        assert ("2:4" in layer["patterns"]) != is_left(layer["name"])


def test_a_layer_that_fits_no_pattern_can_be_left(tmp_path, data):
    model = write_opt(tmp_path / "m", ffn_dim=50)
    config = config_for(model, tmp_path / "out", data, pattern="2:4")
    with pytest.raises(icp_jax.InputError, match="fc2 has 50 inputs, not a multiple of 4"):
        dry_run(config)
    config = config_for(model, tmp_path / "out", data, pattern="2:4", exclude="*.fc2")
    limited = MemoryConfig(device="8GiB")  # planned, too
    done = prune_folder(dataclasses.replace(config, memory=limited))
    assert done.pruned_sparsity == 0.5 and done.sparsity < 0.5


def test_resuming_needs_the_same_choice(opt_folder, tmp_path, data):
    def stop(block, phase, done, total, loss):
        if (block, phase) == (2, "statistics"):
            raise KeyboardInterrupt

    config = config_for(opt_folder, tmp_path / "out", data, sparsity=0.5, exclude="*.fc1")
    other = config_for(opt_folder, tmp_path / "out", data, sparsity=0.5, exclude="*.fc2")
    whole = config_for(opt_folder, tmp_path / "whole", data, sparsity=0.5, exclude="*.fc1")
    with pytest.raises(KeyboardInterrupt):
        prune_folder(config, stop)
    with pytest.raises(Kept, match=r"prune.exclude was \['\*.fc1'\], is \['\*.fc2'\]"):
        prune_folder(other, resume=True)
    prune_folder(config, resume=True)
    name = "model.safetensors"
    assert prune_folder(whole).out.joinpath(name).read_bytes() == (
        tmp_path / "out" / name
    ).read_bytes()  # fmt: skip


def test_sam_too(tmp_path):
    small_sam.write_sam(tmp_path / "model")
    small_sam.write_images(tmp_path / "images")
    config = RunConfig(
        str(tmp_path / "model"),
        str(tmp_path / "out"),
        PruneConfig("wanda", 0.5, exclude=("blocks.*.qkv",), keep_last=1),
        calibration=CalibrationConfig(str(tmp_path / "images"), samples=3),
    )
    done = prune_folder(config)
    assert done.pruned_sparsity == pytest.approx(0.5, abs=1e-3)
    for block in done.blocks:
        for layer in block.layers:
            assert (layer.error == 0) == (layer.name == "qkv" or block.block == 2)


def test_a_sweep_over_choices(opt_folder, tmp_path):
    points = [
        {"prune.method": "wanda", "prune.exclude": ["*.fc1", "*.fc2"]},
        {"prune.method": "wanda", "prune.keep_first": 1},
    ]
    made = small_sweep.sweep(opt_folder, tmp_path, points)
    rows = icp_jax.sweep(made, tmp_path / "a", engine="compiled").rows
    streamed = icp_jax.sweep(made, tmp_path / "b", engine="streamed").rows
    for ours, theirs in zip(rows, streamed, strict=True):
        assert ours["state"] == theirs["state"]
        assert ours.get("sparsity") == theirs.get("sparsity")
    assert rows[1]["sparsity"] == pytest.approx(0.5 * 2 / 3, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--include", "blocks.*.fc3"], "--include 'blocks.*.fc3' matches no layer"),
        (["--exclude", "*"], "leave no layer to prune"),
        (["--keep-first", "2", "--keep-last", "1"], "leave no layer to prune"),
        (["--keep-last", "-1"], "--keep-last must be at least 0"),
        (["--sparsity-of", "*.fc2=1.5"], "--sparsity-of '*.fc2=1.5' is not GLOB=S"),
        (["--sparsity-of", "*.fc2=0.9", "--sparsity", "0.1"], "cannot be reached beside"),
        (["--sparsity-of", "*.fc2=0.5", "--pattern", "2:4"], "--sparsity-of applies to unstruct"),
    ],
)
def test_what_is_refused_in_one_line(opt_folder, tmp_path, data, capsys, options, message):
    out = tmp_path / "out"
    line = ["prune", str(opt_folder), str(out), "--data", data, "--method", "wanda", *options]
    assert main(line) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said and helpful(said, line), said
    assert not out.exists()


def test_options_are_repeated_or_hold_several_globs():
    words = ["prune", "m", "o", "--exclude", "a,b", "--exclude", "c", "--sparsity-of=d=0.5"]
    prune = check(run_config(parse(words))).prune
    assert prune.exclude == ("a", "b", "c") and prune.sparsity_of == ("d=0.5",)
    assert filled(RunConfig(prune=prune)).prune.sparsity is None
