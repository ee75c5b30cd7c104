"""Sweeps of a list of points: each gives what a single run gives, and is recorded at once."""

import dataclasses
import json
from contextlib import closing

import numpy as np
import pytest
import small_sweep

import icp_jax
from icp_jax.cli import main
from icp_jax.errors import InputError
from icp_jax.runs.records import block_record
from icp_jax.runs.run import prune_folder
from icp_jax.streaming.source import FolderSource
from icp_jax.sweeps import grid
from icp_jax.sweeps.outcome import Stopped
from icp_jax.sweeps.running import Watch
from icp_jax.sweeps.settings import at, check
from icp_jax.sweeps.shared import Shared
from icp_jax.sweeps.streamed import PrunedModel, Streamed

POINTS = [
    {"prune.sparsity": 0.5},
    {"prune.sparsity": 0.6, "prune.alpha": 0.9},
    {"prune.method": "wanda", "prune.sparsity": 0.5},
    {"prune.pattern": "2:4", "quant.bits": 4},
    {"compensate.epochs": 2, "seed": 3},
]


@pytest.fixture(scope="module")
def single(opt_folder, tmp_path_factory):
    """Every point by `prune_folder` and `evaluate`: (perplexity, folder)."""
    place, found = tmp_path_factory.mktemp("single"), []
    made = check(small_sweep.sweep(opt_folder, place, POINTS))
    for k, point in enumerate(POINTS):
        run = dataclasses.replace(at(made.base, point), out=str(place / str(k)))
        out = prune_folder(run).out
        found.append((icp_jax.evaluate(out, made.data, seq_len=24).perplexity, out))
    return found


@pytest.mark.parametrize(
    "engine, count, tolerance",
    [
        ("streamed", 5, 0),
        ("compiled", 2, 1e-4),  # one program
        pytest.param("compiled", 5, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_points_give_what_single_runs_give(opt_folder, tmp_path, single, engine, count, tolerance):
    made, seen = small_sweep.sweep(opt_folder, tmp_path, POINTS[:count]), []
    watch = Watch(point=lambda row, done, total: seen.append((row["key"], done, total)))
    found = icp_jax.sweep(made, tmp_path / "out", engine=engine, watch=watch)
    assert [(done, total) for _, done, total in seen] == [(k, count) for k in range(1, count + 1)]
    by_point = {json.dumps(row["settings"]): row for row in found.rows}
    assert {row["engine"] for row in found.rows} == {engine}
    for point, (perplexity, out) in zip(POINTS[:count], single, strict=False):
        row = by_point[json.dumps(point)]
        assert row["state"] == "done" and row["perplexity"] == pytest.approx(
            perplexity, rel=tolerance, abs=0
        )
        told = json.loads((out / "icp_run.json").read_text())
        assert row["errors"] == pytest.approx([b["error"] for b in told["blocks"]], rel=tolerance)
        assert row["sparsity"] == pytest.approx(told["sparsity"], abs=1e-6)
    assert found.best["perplexity"] == min(row["perplexity"] for row in found.rows)


def test_streamed_points_have_the_bytes_of_a_run(opt_folder, tmp_path, single, monkeypatch):
    """The pruned weights and the reports too, whether they stay in memory or on disk."""
    made, seen = check(small_sweep.sweep(opt_folder, tmp_path, POINTS)), []
    monkeypatch.setattr("icp_jax.sweeps.streamed.storage.host_free", lambda: 0)
    made = dataclasses.replace(
        made, base=dataclasses.replace(made.base, memory=icp_jax.config.MemoryConfig("host"))
    )
    with closing(FolderSource(opt_folder)) as source:
        shared = Shared(source, made, lambda *event: seen.append(event[:2]))
        prepared = [shared.prepare(point, at(made.base, point)) for point in POINTS[:2]]
        files = set(tmp_path.iterdir())
        for outcome, (_, out) in zip(
            Streamed(shared, tmp_path).run(prepared), single, strict=False
        ):
            kept = outcome.pruned
            assert isinstance(kept, PrunedModel) and kept.on_disk
            assert set(tmp_path.iterdir()) == files  # what is on disk has no name
            told = json.loads((out / "icp_run.json").read_text())["blocks"]
            for report, of_run in zip(outcome.reports, told, strict=True):
                ours = json.loads(json.dumps(block_record(report)))
                assert {**ours, "seconds": 0} == {**of_run, "seconds": 0}
            with closing(FolderSource(out)) as of_run:
                for t in range(3):
                    ours, theirs = kept.block(t), of_run.block(t)
                    assert ours["fc1"]["kernel"].dtype == np.float16
                    for name in ours:
                        for leaf in ours[name]:
                            assert np.array_equal(ours[name][leaf], theirs[name][leaf])
    assert {block for block, phase in seen if phase == "sparse"} == {0, 1, 2}
    assert sum(event == (0, "dense") for event in seen) == 1  # the second point read its targets


def dense_passes(engine, points, seen, watched=lambda report: None):
    """The outcomes of points, and for each the blocks that the dense stream was computed for."""
    found = []
    for outcome in engine.run(points, watched):
        blocks = [block for block, phase, *_ in seen if phase == "dense"]
        found.append((outcome.prepared.point, sorted(set(blocks))))
        seen.clear()
    return found


def test_points_share_the_dense_stream_that_is_theirs(opt_folder, tmp_path):
    fewer = {"prune.method": "wanda", "calibration.samples": 4}
    points = [{"prune.method": "wanda"}, fewer, {"prune.method": "magnitude"}]
    made, seen = check(small_sweep.sweep(opt_folder, tmp_path, points)), []
    with closing(FolderSource(opt_folder)) as source:
        shared = Shared(source, made, lambda *event: seen.append(event))
        first, other, second = (shared.prepare(point, at(made.base, point)) for point in points)
        engine = Streamed(shared, tmp_path)
        assert dense_passes(engine, [first, other, second], seen) == [
            (points[0], [0, 1, 2]), (points[2], []), (fewer, [0, 1, 2])
        ]  # fmt: skip
        assert not engine._targets  # nothing is kept that no point needs

        search = Streamed(shared, tmp_path, goes_on=True)

        def stop(report):
            if report.block == 1:
                raise Stopped("too bad")

        assert dense_passes(search, [first], seen, stop) == [(points[0], [0, 1])]
        assert dense_passes(search, [second], seen) == [(points[2], [2])]
        assert dense_passes(search, [first], seen) == [(points[0], [])]
        assert dense_passes(search, [other], seen) == [(fewer, [0, 1, 2])]
        assert len(search._targets) == 1


def rows(out):
    return [json.loads(line) for line in (out / "points.jsonl").read_text().splitlines()]


def test_resume_skips_what_is_there(opt_folder, tmp_path):
    points = grid({"prune.method": ["wanda", "magnitude"], "prune.sparsity": [0.5, 0.6]})
    made, out = small_sweep.sweep(opt_folder, tmp_path, [*points, points[0]]), tmp_path / "out"
    assert len(icp_jax.sweep(made, out, trials=2, engine="streamed").rows) == 2
    first = (out / "points.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds 2 points of an earlier sweep: add --resume"):
        icp_jax.sweep(made, out)
    with open(out / "points.jsonl", "ab") as file:
        file.write(first[:40])  # a line that was being written
    found, seen = [], []
    watch = Watch(point=lambda row, done, total: seen.append((done, total)))
    found = icp_jax.sweep(made, out, resume=True, engine="streamed", watch=watch).rows
    assert (out / "points.jsonl").read_bytes().startswith(first) and seen == [(3, 4), (4, 4)]
    assert [row["settings"] for row in found] == points  # the point given twice is run once
    assert rows(out) == found and len({row["inputs"] for row in found}) == 1
    told = json.loads((out / "sweep.json").read_text())
    assert told["best"] == min(found, key=lambda row: row["perplexity"])["key"]
    assert told["points"] == [*points, points[0]] and told["model"] == str(opt_folder)
    kept = {p.name for p in out.iterdir() if p.suffix != ".lock"}
    assert kept == {"points.jsonl", "report.html", "sweep.json"}
    before = (out / "points.jsonl").read_bytes()
    assert icp_jax.sweep(made, out, resume=True).rows == found
    assert (out / "points.jsonl").read_bytes() == before


def test_other_inputs_are_not_mixed(opt_folder, tmp_path):
    made, out = small_sweep.sweep(opt_folder, tmp_path, POINTS[2:3]), tmp_path / "out"
    icp_jax.sweep(made, out, engine="streamed")
    with pytest.raises(
        InputError, match="cannot resume .*: evaluation_shape was .*tokens changed; use the"
    ):
        icp_jax.sweep(made, out, resume=True, limit=2)


def test_a_damaged_line_is_named(opt_folder, tmp_path):
    made, out = small_sweep.sweep(opt_folder, tmp_path, POINTS[2:3]), tmp_path / "out"
    icp_jax.sweep(made, out, engine="streamed")
    line = (out / "points.jsonl").read_text()
    (out / "points.jsonl").write_text(f"{line[:50]}\n{line}")
    with pytest.raises(InputError, match=r"points.jsonl, line 1 is not a point: remove the line"):
        icp_jax.sweep(made, out, resume=True)


def test_infeasible_and_failed_points_are_recorded(opt_folder, tmp_path):
    points = [{"prune.beta": 1.0, "prune.sparsity": 0.8}, {"compensate.lr": 1e30}, POINTS[0]]
    made = small_sweep.sweep(opt_folder, tmp_path, points)
    for engine in ("streamed", "compiled"):
        found = icp_jax.sweep(made, tmp_path / engine, engine=engine)
        by_state = {row["state"]: row for row in found.rows}
        assert list(by_state) == ["infeasible", "failed", "done"]
        assert "largest feasible beta is" in by_state["infeasible"]["why"]
        assert "perplexity" not in by_state["failed"] and by_state["failed"]["why"]
        assert found.best == by_state["done"]


def test_the_command(opt_folder, tmp_path, capsys):
    fields = "grid({'prune.method': ['wanda', 'sparsegpt']})"
    path = small_sweep.write(opt_folder, tmp_path, fields)
    out, best = tmp_path / "out", tmp_path / "best"
    asked = ["sweep", path, "--out", str(out), "--export-best", str(best)]
    assert main(asked) == 0
    said = capsys.readouterr()
    assert "point 1 of 2: prune.method wanda: perplexity" in said.err
    lines = said.out.splitlines()
    command = next(line for line in lines if line.startswith("command"))
    assert f"icp-jax prune {opt_folder} OUT --method " in command
    (lowest,) = [row for row in rows(out) if row["key"] == _best(out)]
    found = icp_jax.evaluate(best, str(tmp_path / "evaluation.npy"), seq_len=24)
    assert found.perplexity == pytest.approx(lowest["perplexity"], rel=1e-4)
    words = command.split()[2:]
    words[words.index("OUT")] = str(tmp_path / "again")
    assert main(words) == 0
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (best / name).read_bytes()
    capsys.readouterr()
    assert main([*asked[:4], "--resume", "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["points"] == 2 and told["states"] == {"done": 2} and said.err == ""
    assert told["best"] == lowest and told["exported"] is None
    assert main(asked) == 2
    assert "exists already" in capsys.readouterr().err


def _best(out):
    return json.loads((out / "sweep.json").read_text())["best"]
