"""Trackers: what they are sent, through the real clients where installed, else through fakes."""

import json
import sys
import types
from pathlib import Path

import pytest
from conftest import write_opt
from example_records import run_record
from runs import error

from icp_jax.cli import main
from icp_jax.errors import InputError
from icp_jax.report import clients, tracking

BLOCKS = 2
SETTINGS = {"prune.method": "icp", "prune.sparsity": 0.5, "prune.pattern": None}


@pytest.fixture
def place(tmp_path, bundled, monkeypatch):
    write_opt(tmp_path / "model", num_hidden_layers=BLOCKS)
    (tmp_path / "text.txt").write_text((bundled / "calibration.txt").read_text()[:3000])
    monkeypatch.chdir(tmp_path)
    return tmp_path


ARGUMENTS = ["prune", "model", "out", "--sparsity", "0.5", "--data", "text.txt", "--samples", "2"]


def prune(*more):
    return main([*ARGUMENTS, "--quiet", *more])


def lines(place):
    text = (place / "out.tracking" / "blocks.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_per_block_with_losses_errors_seconds_and_memory(place):
    assert prune("--track", "jsonl") == 0
    record = json.loads((place / "out" / "icp_run.json").read_text())
    rows = lines(place)
    assert [row["block"] for row in rows] == list(range(BLOCKS))
    for row, block in zip(rows, record["blocks"], strict=True):
        assert row["error"] == block["error"] and row["error_p95"] == block["error_p95"]
        assert row["seconds/total"] == pytest.approx(sum(block["seconds"].values()), abs=0.01)
        assert {f"seconds/{phase}" for phase in block["seconds"]} <= set(row)
        assert row["memory/host_mib"] > 50 and 0 < row["sparsity"] < 1
    assert "loss/before" not in rows[0]
    assert rows[1]["loss/after"] == record["blocks"][1]["compensation"]["after"]


def test_tracking_changes_no_weights_and_no_fingerprint(place):
    assert prune() == 0
    (place / "out").rename(place / "first")
    assert prune("--track", "jsonl") == 0
    weights = [(place / n / "model.safetensors").read_bytes() for n in ("first", "out")]
    assert weights[0] == weights[1]


def test_a_resumed_run_adds_to_its_lines(place, monkeypatch):
    def stop(block, phase, done, total, loss):
        if (block, phase) == (1, "statistics"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("icp_jax.cli.progress._lines", lambda err, label: stop)
        assert main([*ARGUMENTS, "--track", "jsonl"]) == 130
    assert [row["block"] for row in lines(place)] == [0]
    assert prune("--track", "jsonl", "--resume") == 0
    assert [row["block"] for row in lines(place)] == [0, 1]


def test_a_tracker_that_is_unknown_or_not_installed_is_one_line(place, monkeypatch, capsys):
    assert prune("--track", "jsonl,excel") == 2
    assert "track must be of jsonl, tensorboard, wandb, mlflow, got 'excel'" in error(capsys)
    monkeypatch.setitem(tracking.NEEDS, "wandb", "no_such_module")
    assert prune("--track", "wandb") == 2
    assert error(capsys) == "icp-jax: wandb is not installed: pip install 'icp-jax[wandb]'"
    assert sorted(p.name for p in place.iterdir()) == ["model", "text.txt"]


def test_a_tracker_that_fails_does_not_stop_the_run(place, monkeypatch, capsys):
    def full(self, step, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking.Lines, "log", full)
    assert prune("--track", "jsonl") == 0
    said = error(capsys)  # one line for all blocks
    assert said == "icp-jax: jsonl tracks no more: [Errno 28] No space left on device"


def test_names_are_a_list_without_repeats():
    assert tracking.names(" jsonl, jsonl,") == ["jsonl"] and tracking.names("") == []
    with pytest.raises(InputError):
        tracking.names("jsonl tensorboard")


# ---------------------------------------------------------------- through each client


def tracked(name, folder):
    """Send two blocks through a tracker; what it said."""
    said = []
    trackers = tracking.Trackers(name, folder / "out", SETTINGS, said.append)
    for block in run_record(2)["blocks"]:
        trackers.log(block["block"], tracking.values(block, host=100.0, device=None))
    trackers.close(True)
    return said


class Called:
    """Records the calls of its methods and of what they return."""

    def __init__(self, calls, name=""):
        self.calls, self.name = calls, name

    def __getattr__(self, name):
        return Called(self.calls, f"{self.name}.{name}".lstrip("."))

    def __call__(self, *args, **named):
        self.calls.append((self.name, args, named))
        return self


@pytest.fixture
def fake(monkeypatch):
    """fake(module, attribute, ...): a module whose calls are recorded in the returned list."""

    def make(module, *attributes):
        calls, made = [], types.ModuleType(module)
        for name in attributes:
            setattr(made, name, Called(calls, name))
        monkeypatch.setitem(sys.modules, module, made)
        monkeypatch.setitem(tracking.NEEDS, module, "json")  # a module that is there
        monkeypatch.setitem(tracking.NEEDS, module.removesuffix("X").lower(), "json")
        return calls

    return make


def test_tensorboard_is_sent_scalars(tmp_path, fake):
    calls = fake("tensorboardX", "SummaryWriter")
    assert tracked("tensorboard", tmp_path) == []
    assert calls[0] == ("SummaryWriter", (str(tmp_path / "out.tracking" / "tensorboard"),), {})
    sent = [args for name, args, _ in calls if name.endswith("add_scalar")]
    assert ("error", 0.01, 0) in sent and ("loss/before", 1.2, 1) in sent
    assert calls[-1][0].endswith("close")


def test_wandb_is_sent_a_step_per_block(tmp_path, fake):
    calls = fake("wandb", "init", "Settings")
    assert tracked("wandb", tmp_path) == []
    (start,) = [named for name, _, named in calls if name == "init"]
    assert start["project"] == clients.PROJECT and start["config"] == SETTINGS
    sent = [(args[0], named) for name, args, named in calls if name == "init.log"]
    assert [named for _, named in sent] == [{"step": 0}, {"step": 1}]
    assert sent[1][0]["memory/host_mib"] == 100 and "memory/device_mib" not in sent[1][0]
    assert calls[-1] == ("init.finish", (), {"exit_code": 0})


def test_mlflow_is_sent_metrics(tmp_path, fake, monkeypatch):
    calls = fake("mlflow", "MlflowClient")
    entities = types.ModuleType("mlflow.entities")
    entities.Param, entities.Metric = (lambda *given: given,) * 2
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracked("mlflow", tmp_path) == []
    assert calls[0][2]["tracking_uri"] == f"sqlite:///{tmp_path}/out.tracking/mlflow.db"
    told, *sent = [named for name, _, named in calls if name.endswith("log_batch")]
    assert told["params"] == [("prune.method", "icp"), ("prune.sparsity", "0.5")]
    assert [metric[3] for metric in sent[1]["metrics"]][:2] == [1, 1]
    assert calls[-1][1][-1] == "FINISHED"


@pytest.mark.filterwarnings("default")
def test_the_real_tensorboard_client(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs pip install 'icp-jax[tensorboard]'")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the format read below)

    assert tracked("tensorboard", tmp_path) == []
    (path,) = (tmp_path / "out.tracking" / "tensorboard").iterdir()
    data, found = path.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
        data = data[16 + size :]
    assert ("loss/before", 1, pytest.approx(1.2)) in found
    assert ("seconds/prune", 0, 0.25) in found


@pytest.mark.filterwarnings("default")
def test_the_real_wandb_client_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs pip install 'icp-jax[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracked("wandb", tmp_path) == []
    (run,) = (tmp_path / "out.tracking" / "wandb").glob("offline-run-*/run-*.wandb")
    written = run.read_bytes()
    assert b"error_p95" in written and b"loss/before" in written


@pytest.mark.filterwarnings("default")
def test_the_real_mlflow_client_in_a_database(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs pip install 'icp-jax[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracked("mlflow", tmp_path) == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/out.tracking/mlflow.db")
    experiment = client.get_experiment_by_name(clients.PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"prune.method": "icp", "prune.sparsity": "0.5"}
    assert run.info.status == "FINISHED"
    values = client.get_metric_history(run.info.run_id, "loss/before")
    assert [(v.step, v.value) for v in values] == [(1, 1.2)]
    assert Path("mlruns").exists() is False
