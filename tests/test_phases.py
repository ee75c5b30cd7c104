"""The phases of a run: each is planned, and has its share of the whole."""

import json

import pytest

from icp_jax import CalibrationConfig, PruneConfig, RunConfig, phases
from icp_jax.config import filled
from icp_jax.models import make_family
from icp_jax.planning import cost
from icp_jax.planning.table import TABLE


def test_every_phase_of_the_loop_is_planned():
    assert tuple(entry.phase for entry in TABLE) == phases.STREAMED


@pytest.mark.parametrize("method", ["icp", "wanda"])
def test_shares_add_up_to_one_and_follow_the_run(opt_folder, method):
    config = json.loads((opt_folder / "config.json").read_text())
    family = make_family(config)
    shapes = [{spec.name: (8, 8) for spec in family.linears}] * family.n_blocks
    asked = RunConfig(prune=PruneConfig(method), calibration=CalibrationConfig(samples=4))
    run = filled(asked)
    found = cost.weights(family, shapes, cost.load(run, 16))
    assert sum(found.values()) == pytest.approx(1)
    of_second = [name for t, name in found if t == 1]
    tuned = ["compensate"] if method == "icp" else []
    assert of_second == ["dense", *tuned, "statistics", "prune", "sparse"]
    assert (0, "compensate") not in found
    flops = cost.flops(family, shapes, cost.load(run, 16))
    for name, count in flops.items():
        share = sum(s for (_, phase), s in found.items() if phase == name)
        assert share == pytest.approx(count / sum(flops.values()))
