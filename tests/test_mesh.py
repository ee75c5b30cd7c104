"""Several devices, and several processes, give what one device gives."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_opt
from safetensors.numpy import load_file

from icp_jax.cli import main
from icp_jax.runs.run import RECORD

FLIPS = 1e-4  # the share of weights that may be kept by one and pruned by the other: ties
KEPT = 1e-4  # the distance of the kept weights, relative to their norm
REPORTED = 1e-3


def virtual(count):
    """The environment of a process with so many CPU devices: set before it imports JAX."""
    # most of the time goes into compiling
    flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
    return os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("mesh")
    script = Path(__file__).parent / "mesh_runs.py"
    subprocess.run([sys.executable, script, out], check=True, env=virtual(8))
    return json.loads((out / "facts.json").read_text()), dict(np.load(out / "kernels.npz"))


def alike(one, many):
    """Kernels by name: the same zeros but for FLIPS, the same weights but for KEPT."""
    assert one.keys() == many.keys()
    flipped = sum(np.sum((one[k] != 0) != (many[k] != 0)) for k in one)
    assert flipped <= FLIPS * sum(kernel.size for kernel in one.values()), flipped
    for name, kernel in one.items():
        kept = (kernel != 0) & (many[name] != 0)
        assert 0.1 < kept.mean() < 0.9
        distance = np.linalg.norm((kernel - many[name])[kept].astype(np.float64))
        assert distance <= KEPT * np.linalg.norm(kernel[kept].astype(np.float64)), name


@pytest.mark.parametrize("name", ["icp", "icp 2:4", "sparsegpt", "sparsegpt 2:4", "few", "pinned"])
def test_eight_devices_give_what_one_gives(runs, name):
    """13 samples, and few: 5, fewer than there are devices. pinned: streams off the host's heap."""
    facts, kernels = runs
    alone = "sparsegpt/1/" if name == "pinned" else f"{name}/1/"
    many = f"{name}/8/"
    one, eight = (
        {k.removeprefix(lead): v for k, v in kernels.items() if k.startswith(lead)}
        for lead in (alone, many)
    )
    assert any(not np.array_equal(one[k], eight[k]) for k in one)  # sums in another order
    alike(one, eight)
    a, b = (facts["runs"][lead.rstrip("/")] for lead in (alone, many))
    assert a["zeros"] == b["zeros"]
    for said in ("perplexity", "blocks", "layers", "losses"):
        np.testing.assert_allclose(a[said], b[said], rtol=REPORTED, err_msg=said)


def test_the_work_is_split(runs):
    """Samples stay on their devices, sums are added up, and rows need nothing of each other."""
    layout = runs[0]["layout"]
    split, rows, whole = (f"P({p})" for p in ("'devices',", "None, 'devices'", ""))
    assert layout["forward"] == {"out": sorted([split, whole]), "sent": ["all-reduce"]}
    assert layout["collect"] == {"out": [whole], "sent": ["all-reduce"]}
    # what the rows lost is one number: only that is summed
    assert layout["walk 2:4"] == {"out": sorted([rows, whole]), "sent": ["all-reduce"]}
    assert layout["rows at a device"] == 128 // 8
    assert layout["odd rows are whole"]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def processes(place, out, second=(), models=("opt", "opt")):
    """Two of them prune with four devices each: their exit statuses, outputs and errors.

    second: more arguments of the second one; models: what each is given to prune.
    """
    hosts = ["--hosts.coordinator", f"127.0.0.1:{free_port()}", "--hosts.count", "2"]
    code = [sys.executable, "-m", "icp_jax.cli"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(
            [*code, *prune(out, model), *hosts, "--hosts.index", str(k), *more],
            cwd=place,
            env=virtual(4),
            **pipes,
        )
        for k, (model, more) in enumerate(zip(models, ((), second), strict=True))
    ]
    try:
        said = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], said


@pytest.fixture
def place(tmp_path):
    write_opt(tmp_path / "opt", np.float32, num_hidden_layers=2)
    tokens = np.random.default_rng(1).integers(3, 2048, 4000)
    np.save(tmp_path / "tokens.npy", tokens)
    return tmp_path


ARGS = ["--sparsity", "0.5", "--compensate.lr", "1e-3", "--json"]
ARGS += ["--data=tokens.npy", "--samples=13", "--seq-len=24"]


def prune(out, model="opt"):
    return ["prune", model, out, *ARGS]


def test_two_processes_give_what_one_gives(place, monkeypatch, capsys):
    statuses, said = processes(place, "two")
    assert statuses == [0, 0], said
    assert json.loads(said[0][0])["sparsity"] == 0.5 and said[1][0] == ""
    monkeypatch.chdir(place)
    assert main(prune("one")) == 0
    assert capsys.readouterr().out
    assert sorted(p.name for p in place.iterdir()) == ["one", "opt", "tokens.npy", "two"]
    records = [json.loads((place / out / RECORD).read_text()) for out in ("one", "two")]
    assert [record["config"]["devices"] for record in records] == [1, 8]
    errors = [[block["error"] for block in record["blocks"]] for record in records]
    np.testing.assert_allclose(*errors, rtol=REPORTED)
    one, two = (load_file(place / out / "model.safetensors") for out in ("one", "two"))
    pruned = [k for k in one if ".layers." in k and one[k].ndim == 2]
    assert len(pruned) == 12
    alike({k: one[k] for k in pruned}, {k: two[k] for k in pruned})


def test_a_process_that_cannot_go_on_ends_them_all(place):
    (place / "out").mkdir()
    statuses, said = processes(place, "out")
    assert statuses[0] == 2 and statuses[1] != 0
    assert said[0][1].splitlines() == [
        "icp-jax: out exists already: choose another output folder, or move it away"
    ]
    assert list((place / "out").iterdir()) == []


@pytest.mark.parametrize("what", ["settings", "weights"])
def test_processes_that_differ_do_not_start(place, what):
    write_opt(place / "other", np.float32, num_hidden_layers=2, seed=1)
    if what == "settings":
        statuses, said = processes(place, "out", ("--prune.damping", "0.02"))
    else:
        statuses, said = processes(place, "out", models=("opt", "other"))
    assert statuses == [2, 2]
    for _, errors in said:
        assert "icp-jax: the hosts have different settings, weights or versions" in errors
    assert not (place / "out").exists()
