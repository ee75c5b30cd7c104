"""Searches: samplers by name, several processes on one study, points that are not worth it."""

import json
from types import SimpleNamespace

import pytest
import small_sweep

import icp_jax
from icp_jax.cli import main
from icp_jax.core.outcomes import BlockReport
from icp_jax.errors import InputError
from icp_jax.sweeps import Sweep, choice, integers, log_uniform, uniform
from icp_jax.sweeps.outcome import Stopped
from icp_jax.sweeps.study import Study

optuna = pytest.importorskip("optuna")
SPACE = {"prune.alpha": uniform(0.6, 1.0), "prune.beta": uniform(0.0, 0.9)}
METHODS = {"prune.method": choice("wanda", "magnitude"), "prune.sparsity": choice(0.4, 0.5)}


def test_a_search_runs_what_is_feasible(opt_folder, tmp_path):
    space = {**SPACE, "prune.method": choice("wanda")}  # compiles little
    made = small_sweep.sweep(opt_folder, tmp_path, space=space, trials=3, seed=1)
    found = icp_jax.sweep(made, tmp_path / "out", engine="streamed", sampler="random")
    assert [row["state"] for row in found.rows].count("done") >= 1 and len(found.rows) == 3
    assert all(0.6 <= row["settings"]["prune.alpha"] <= 1 for row in found.rows)
    assert found.best["perplexity"] == min(r["perplexity"] for r in found.rows if "perplexity" in r)
    more = icp_jax.sweep(
        made, tmp_path / "out", engine="streamed", resume=True, trials=4, sampler="random"
    )
    assert more.rows[:3] == found.rows and len(more.rows) == 4
    assert len({row["trial"] for row in more.rows}) == 4
    told = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert told["space"]["prune.alpha"] == "Uniform(low=0.6, high=1.0, log=False)"


def test_the_grid_ends_by_itself(opt_folder, tmp_path):
    made = small_sweep.sweep(opt_folder, tmp_path, space=METHODS, sampler="grid")
    found = icp_jax.sweep(made, tmp_path / "out")
    assert sorted(tuple(row["settings"].values()) for row in found.rows) == [
        ("magnitude", 0.4), ("magnitude", 0.5), ("wanda", 0.4), ("wanda", 0.5)
    ]  # fmt: skip
    assert {row["engine"] for row in found.rows} == {"streamed"}  # few points


def study(folder, space, **fields):
    folder.mkdir(exist_ok=True)
    return Study(Sweep("opt_pydoc", space=space, data="x", **fields), folder)


def value(point):
    return (point["prune.alpha"] - 0.8) ** 2 + (point["prune.beta"] - 0.1) ** 2


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "qmc", "random"])
def test_samplers_by_name(tmp_path, sampler):
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    made = study(tmp_path, SPACE, sampler=sampler, trials=12)
    for trial in made.trials():
        made.tell(trial, value(made.point(trial)))
    made.close()
    assert len(made.study.trials) == 12
    points = {tuple(made.point(trial).values()) for trial in made.study.trials}
    assert len(points) == 12 and all(0.6 <= a <= 1 and 0 <= b <= 0.9 for a, b in points)


def test_ranges_become_distributions(tmp_path):
    space = {"compensate.lr": log_uniform(1e-5, 1e-2), "compensate.epochs": integers(1, 3)}
    made = study(tmp_path, space, trials=1)
    lr, epochs = made.spans.values()
    assert lr == optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)
    assert epochs == optuna.distributions.IntDistribution(1, 3)
    made.close()


def test_processes_share_the_trials(tmp_path):
    """As two processes do: each asks the journal."""
    one, two = (study(tmp_path, SPACE, trials=6) for _ in range(2))
    turns, done = [one.trials(), two.trials()], 0
    while turns:
        for made, turn in zip((one, two), list(turns), strict=False):
            trial = next(turn, None)
            if trial is None:
                turns.remove(turn)
                continue
            made.tell(trial, value(made.point(trial)))
            done += 1
    assert done == 6 and len(one.study.trials) == 6
    one.close()
    two.close()
    assert not list(tmp_path.glob("worker-*"))


def test_a_point_of_a_killed_process_is_run_again(tmp_path):
    killed, other = (study(tmp_path, SPACE, trials=3) for _ in range(2))
    lost, running = next(killed.trials()), next(other.trials())
    killed.lock.release()  # as the system does
    again = study(tmp_path, SPACE, trials=3)
    points = [again.point(trial) for trial in again.trials()]
    assert points[0] == dict(lost.params) and dict(running.params) not in points
    states = [trial.state.name for trial in again.study.trials]
    assert states[:2] == ["FAIL", "RUNNING"]
    again.close()
    other.close()
    assert not list(tmp_path.glob("worker-*"))


def test_processes_killed_between_points_leave_nothing(tmp_path):
    """One after it told a result, and two before they put their names on a trial."""
    told, asking, early = (study(tmp_path, SPACE, trials=4) for _ in range(3))
    told.tell(next(told.trials()), 1.0)
    lost = asking.study.ask(asking.spans)
    early.study.ask()  # no point yet
    for killed in (told, asking, early):
        killed.lock.release()  # as the system does
    again = study(tmp_path, SPACE, trials=4)
    first, *others = [tuple(again.point(trial).values()) for trial in again.trials()]
    assert first == tuple(lost.params.values()) and len({first, *others}) == 3
    again.close()
    assert not list(tmp_path.glob("worker-*"))


def test_points_above_the_median_are_stopped(tmp_path):
    made = study(tmp_path, SPACE, trials=20)
    for k, trial in enumerate(made.trials()):
        watch = made.watch(trial)
        error = 0.1 * (k + 1)
        reports = [BlockReport(t, (), error * (t + 1), None) for t in range(4)]
        if k < 4:
            for report in reports:
                watch(report)
            made.tell(trial, error)
            continue
        watch(reports[0])
        watch(reports[1])
        with pytest.raises(Stopped, match="error 1.5 after block 2, median 0.75"):
            watch(reports[2])
        made.tell(trial, None)
        break
    assert made.study.trials[-1].state.name == "PRUNED"
    made.close()


def test_a_stopped_point_is_recorded(opt_folder, tmp_path, monkeypatch):
    def stop(self, trial):
        def block(report):
            if report.block == 1:
                raise Stopped("too bad")

        return block

    monkeypatch.setattr(Study, "watch", stop)
    made = small_sweep.sweep(opt_folder, tmp_path, space=METHODS, trials=1)
    (row,) = icp_jax.sweep(made, tmp_path / "out", engine="streamed").rows
    assert (row["state"], row["why"], len(row["errors"])) == ("stopped", "too bad", 2)
    assert "perplexity" not in row


def test_an_infeasible_space_ends(opt_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("icp_jax.sweeps.study.IDLE", 5)
    space = {"prune.sparsity": uniform(0.9, 0.95), "prune.beta": uniform(0.8, 1.0)}
    made = small_sweep.sweep(opt_folder, tmp_path, space=space, trials=2)
    with pytest.raises(InputError, match="5 points in a row are infeasible.*narrow the space"):
        icp_jax.sweep(made, tmp_path / "out")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"space": SPACE}, "a search needs an end: set trials or budget"),
        ({"space": SPACE, "sampler": "grid"}, "prune.alpha: the grid sampler needs choice"),
        ({"space": METHODS, "sampler": "cmaes", "trials": 2}, "prune.method: the cmaes sampler"),
        ({"space": {"prune.alpha": 3}, "trials": 1}, "prune.alpha: a space needs a range"),
        ({"space": {"alpha": uniform(0, 1)}, "trials": 1}, "'alpha' is not a setting"),
    ],
)
def test_what_is_wrong_with_a_search(opt_folder, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        icp_jax.sweep(small_sweep.sweep(opt_folder, tmp_path, **fields), tmp_path / "out")


def test_without_optuna(opt_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    path = small_sweep.write(opt_folder, tmp_path, "space={'prune.alpha': uniform(0.8, 1)}")
    assert main(["sweep", path, "--out", str(tmp_path / "out"), "--trials", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a search needs optuna: pip install 'icp-jax[search]'" in line
    assert not (tmp_path / "out" / "points.jsonl").exists()


def test_the_budget_ends_a_search(opt_folder, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("icp_jax.sweeps.running.time.monotonic", lambda: clock.now)
    made = small_sweep.sweep(opt_folder, tmp_path, space=METHODS, budget=1)

    def later(row, done, total):
        clock.now += 40
        assert total is None

    watch = icp_jax.sweeps.running.Watch(point=later)
    assert len(icp_jax.sweep(made, tmp_path / "out", engine="streamed", watch=watch).rows) == 2
