"""The peaks that the plan predicts beside those that runs have."""

import collections
import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from test_plan import model
from vision import small_sam

SHAPES = {  # blocks of OPT, samples, tokens, further options
    "small": (dict(hidden_size=256, ffn_dim=1024, num_hidden_layers=3), 32, 256, []),
    "wide blocks": (
        dict(hidden_size=768, ffn_dim=3072, num_attention_heads=12, num_hidden_layers=2),
        4,
        128,
        ["--prune.beta", "0.1"],
    ),
    "wide blocks with alps": (
        dict(hidden_size=768, ffn_dim=3072, num_attention_heads=12, num_hidden_layers=2),
        4,
        128,
        ["--method", "alps"],
    ),
    "long streams": (
        dict(hidden_size=256, ffn_dim=512, num_hidden_layers=2),
        256,
        512,
        ["--method", "sparsegpt"],
    ),
    "large vocabulary": (
        dict(hidden_size=256, ffn_dim=1024, num_hidden_layers=2, vocab_size=120_000),
        4,
        128,
        ["--prune.beta", "0.1"],
    ),
    "global pass": (
        dict(hidden_size=256, ffn_dim=1024, num_hidden_layers=3),
        16,
        128,
        ["--method", "sparsegpt", "--global-epochs", "1"],
    ),
}


LONG = ("wide blocks with alps", "long streams", "large vocabulary", "global pass")


@pytest.mark.parametrize(
    "shape", [pytest.param(s, marks=pytest.mark.slow) if s in LONG else s for s in SHAPES]
)
def test_planned_and_measured_peaks_agree(tmp_path, shape):
    changes, samples, length, more = SHAPES[shape]
    model(tmp_path / "model", changes, length)
    ids = np.random.default_rng(0).integers(3, 2000, 2 * samples * length)
    np.save(tmp_path / "ids.npy", ids.astype(np.int32))
    args = ["--data", "ids.npy", *more, "--json"]
    args += ["--samples", str(samples), "--seq-len", str(length)]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")

    def run(*command):
        code = [sys.executable, "-m", "icp_jax.cli", *command, *args]
        done = subprocess.run(
            code, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    def programs():
        found = [p.name for p in (tmp_path / "cache").rglob("jit_*-cache")]
        return collections.Counter(name.rsplit("-", 2)[0] for name in found)

    planned = run("plan", "model")
    compiled = programs()
    run("prune", "model", "out")
    solver = ("spectrum", "alps") if "alps" in more else ("factor", "_walk")
    for program in ("forward", "forward_beside", "collect", "energy", *solver):
        assert programs()[f"jit_{program}"] == compiled[f"jit_{program}"] > 0, program
    assert programs()["jit__steps"] == compiled["jit__steps"]
    measured = json.loads((tmp_path / "out" / "icp_run.json").read_text())["peak_host_mib"]
    assert planned["peak"]["host"] / 2**20 == pytest.approx(measured, rel=0.15)


def test_images_are_counted_in_host_memory(tmp_path):
    """The run keeps its pixels: here 288 MiB."""
    config = copy.deepcopy(small_sam.CONFIG)
    for part in ("vision_config", "prompt_encoder_config"):
        config[part] |= {"image_size": 512, "patch_size": 64}
    folder = small_sam.write_sam(tmp_path / "model", config=config)
    small_sam.write_images(tmp_path / "images", 96)
    args = ["--data", str(tmp_path / "images")]
    args += ["--samples", "96", "--method", "wanda", "--json"]

    def run(*command):
        code = [sys.executable, "-m", "icp_jax.cli", *command, *args]
        done = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    planned = run("plan", str(folder))
    run("prune", str(folder), "out")
    measured = json.loads((tmp_path / "out" / "icp_run.json").read_text())["peak_host_mib"]
    assert planned["peak"]["host"] / 2**20 == pytest.approx(measured, rel=0.15)
