"""The plan: the settings it picks, the disk it predicts, what it says where nothing fits."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import write_opt

import icp_jax.planning.plan as planning
from icp_jax import CalibrationConfig, PruneConfig, RunConfig
from icp_jax.cli import main
from icp_jax.config import MemoryConfig, parse_bytes
from icp_jax.errors import InputError
from icp_jax.planning.memory import Programs, need
from icp_jax.planning.plan import settle
from icp_jax.planning.workload import resolved, workload
from icp_jax.runs.run import prune_folder
from icp_jax.streaming import storage
from icp_jax.streaming.source import FolderSource


def model(folder, changes, tokens):
    hidden = changes["hidden_size"]
    changes = {**changes, "word_embed_proj_dim": hidden, "max_position_embeddings": tokens}
    return write_opt(folder, np.float32, **changes)


@pytest.fixture
def few(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = dict(hidden_size=64, ffn_dim=256, num_hidden_layers=2)
    folder = model(tmp_path / "model", changes, 64)
    np.save("ids.npy", np.random.default_rng(0).integers(3, 2000, 40_000).astype(np.int32))
    sizes = ["--samples", "256", "--seq-len", "64"]
    return [str(folder), "--data", "ids.npy", "--prune.beta", "0", *sizes]


def plan(capsys, *args):
    assert main(["plan", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_small_host_gets_its_streams_on_disk(few, capsys):
    few = [*few, "--samples", "20000"]  # only planned
    roomy = plan(capsys, *few)
    assert roomy["memory"]["streams"] == "host" and roomy["memory"]["batch_tokens"] is None
    tight = roomy["peak"]["host"] - roomy["stream_bytes"] // 2
    found = plan(capsys, *few, "--host-memory", str(tight))
    assert found["memory"]["streams"] == "disk" and found["peak"]["host"] <= tight
    assert found["peak"]["disk"] == roomy["peak"]["disk"] + roomy["stream_bytes"]


def test_compensation_that_does_not_fit_is_rematerialised(tmp_path, capsys):
    changes = dict(hidden_size=64, ffn_dim=64, num_attention_heads=8, num_hidden_layers=2)
    args = [str(model(tmp_path / "model", changes, 1024))]
    args += ["--samples", "4", "--prune.beta", "0"]
    roomy = plan(capsys, *args)
    assert roomy["memory"]["remat"] is None
    tight = plan(capsys, *args, "--memory.remat", "True")
    needs = [max(p["device"] for p in found["phases"]) for found in (roomy, tight)]
    assert needs[1] < 0.7 * needs[0]  # its scores are most of what compensation takes
    found = plan(capsys, *args, "--device-memory", str(needs[0] - 1))
    assert found["memory"]["remat"] is True and found["memory"]["batch_tokens"] is None


def test_what_is_set_stays_and_bfloat16_halves_the_streams(few, capsys):
    roomy = plan(capsys, *few)
    found = plan(capsys, *few, "--memory.streams", "disk", "--memory.stream-dtype", "bfloat16")
    assert found["memory"]["streams"] == "disk"
    assert found["stream_bytes"] == roomy["stream_bytes"] // 2


def test_nothing_fits(few, capsys):
    assert main(["plan", *few, "--host-memory", "1MiB"]) == 2
    assert re.search(r"it lacks [0-9.]+ GiB of host memory for", capsys.readouterr().err)


def test_prune_uses_the_same_plan(few, capsys, tmp_path):
    assert main(["prune", few[0], "none", *few[1:], "--host-memory", "1MiB"]) == 2
    assert "host memory for" in capsys.readouterr().err and not (tmp_path / "none").exists()
    tight = 2 * plan(capsys, *few)["peak"]["host"]
    options = ["--compensate.epochs", "0", "--host-memory", str(tight), "--json"]
    assert main(["prune", few[0], "out", *few[1:], *options]) == 0
    record = json.loads((tmp_path / "out" / "icp_run.json").read_text())
    assert record["config"]["memory"]["streams"] == "host"


def test_an_accelerator_is_given_what_is_free(few, monkeypatch):
    """Both memories: streams that the host has no room for go to disk there too."""
    source = FolderSource(few[0])
    config = resolved(RunConfig(model=few[0], calibration=CalibrationConfig("ids.npy")), source)
    seen = {}

    def fit(work, **limits):
        seen.update(limits)
        return SimpleNamespace(memory=MemoryConfig("disk", remat=True))

    monkeypatch.setattr(planning, "fit", fit)
    assert settle(source, config)[0].memory == MemoryConfig(batch_tokens=1024, remat=False)
    assert not seen  # the CPU has no limits of its own
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(storage, "device_free", lambda: 7)
    assert settle(source, config)[0].memory == MemoryConfig("disk", batch_tokens=4096, remat=True)
    assert seen["device"] == 7 and 0 < seen["host"] <= storage.proc("meminfo", "MemTotal")
    monkeypatch.setattr(storage, "device_free", lambda: 0)  # one that does not say
    with pytest.raises(InputError, match="set memory.device"):
        settle(source, config)
    source.close()


def test_the_first_of_several_accelerators_holds_whole_batches(few, monkeypatch):
    source = FolderSource(few[0])
    pruning = PruneConfig("magnitude", sparsity=0.5)
    asked = RunConfig(model=few[0], prune=pruning, calibration=CalibrationConfig("ids.npy", 16, 64))
    config, memory = resolved(asked, source), MemoryConfig("host", batch_tokens=64, remat=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    one, eight = (
        {
            phase.name: phase.device
            for phase in need(
                workload(source, dataclasses.replace(config, devices=n)), memory
            ).phases
        }
        for n in (1, 8)
    )
    batch = 64 * 64 * 4  # bytes of what each takes at once
    more = {name: (eight[name] - one[name]) / (8 * batch) for name in one}
    assert (more["dense"], more["sparse"], more["statistics"], more["prune"]) == (5, 8, 3, 0)
    source.close()


def test_streams_too_large_for_the_device_are_not_planned_there(few, monkeypatch):
    """Every try compiles for minutes on an accelerator."""
    calibration, tried = CalibrationConfig("ids.npy", samples=256, seq_len=64), []
    source = FolderSource(few[0])
    config = resolved(RunConfig(model=few[0], calibration=calibration), source)
    both = 2 * 256 * 64 * 64 * 4

    def need(work, memory):
        tried.append(memory.streams)
        return SimpleNamespace(device=0, host=0, memory=memory)

    monkeypatch.setattr(planning, "need", need)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for room, place in ((both, "device"), (both - 1, "host")):
        assert planning.fit(workload(source, config), room).memory.streams == place
    assert tried == ["device", "host"]
    config = dataclasses.replace(config, memory=MemoryConfig("device"))
    with pytest.raises(InputError, match="GiB of device memory for the streams alone"):
        planning.fit(workload(source, config), both // 2)
    source.close()


def test_planned_and_measured_disk_agree(few, capsys, tmp_path):
    few = [*few, "--samples", "8"]
    planned = plan(capsys, *few, "--memory.streams", "disk")
    found = []

    def progress(block, phase, done, total, loss):
        if phase == "check" and not done:
            work = tmp_path / ".out.partial"
            found.append(sum(p.stat().st_size for p in work.rglob("*") if p.is_file()))

    calibration = CalibrationConfig("ids.npy", samples=8, seq_len=64)
    prune = PruneConfig(beta=0.0)
    prune_folder(RunConfig(few[0], "out", prune, calibration=calibration), progress)
    (without_streams,) = found
    left = planned["peak"]["disk"] - planned["stream_bytes"]
    assert left == pytest.approx(without_streams, rel=0.15)


@pytest.mark.parametrize("method, rounds", [("sparsegpt", False), ("wanda", True)])
def test_quantization_is_planned(few, capsys, monkeypatch, method, rounds):
    real, asked = Programs.beside, set()

    def beside(self, function, *args, **options):
        asked.add(function.__name__)
        return real(self, function, *args, **options)

    monkeypatch.setattr(Programs, "beside", beside)
    plan(capsys, *few, "--method", method)
    assert not asked & {"make_grid", "round_kernel"}
    plan(capsys, *few, "--method", method, "--bits", "4", "--quant.search")
    assert asked >= {"make_grid"} and ("round_kernel" in asked) == rounds


def test_a_dry_run_needs_no_weights(few, capsys, tmp_path):
    options = [*few, "--memory.stream-dtype", "bfloat16", "--dry-run", "--json"]
    assert main(["prune", *options]) == 0
    full = json.loads(capsys.readouterr().out)
    (tmp_path / "model" / "model.safetensors").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    assert main(["prune", *options]) == 0
    assert json.loads(capsys.readouterr().out) == full
    assert full["stream_bytes"] == 2 * 256 * 64 * 64 * 2


def test_a_config_is_enough(few, capsys, tmp_path):
    full = plan(capsys, *few)
    (tmp_path / "bare").mkdir()
    (tmp_path / "model" / "config.json").rename(tmp_path / "bare" / "config.json")
    for name in ("bare", "bare/config.json"):
        found = plan(capsys, str(tmp_path / name), *few[1:])
        # no weights to say in what dtype they are stored: the config does, or float32
        assert [p["device"] for p in found["phases"]] == [p["device"] for p in full["phases"]]
        assert found["peak"]["disk"] == pytest.approx(full["peak"]["disk"], rel=0.01)


@pytest.mark.parametrize(
    "text,count",
    [("8GiB", 8 << 30), ("1.5 MB", 1_500_000), ("4096", 4096), ("2gib", 2 << 30), ("", None)],
)
def test_sizes(text, count):
    assert parse_bytes("x", text) == count


@pytest.mark.parametrize("text", ["8 apples", "-1GiB", "0", "GiB"])
def test_no_size(text, capsys):
    assert main(["plan", "m", "--device-memory", text]) == 2
    assert "must be a size such as 8GiB" in capsys.readouterr().err
