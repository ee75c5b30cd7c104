"""The command in a report: the command line's own spelling, and the same settings again."""

import dataclasses
import shlex

import pytest

from icp_jax.checks import flat
from icp_jax.cli.options import GROUPS, kinds, run_config
from icp_jax.cli.parse import parse
from icp_jax.config import (
    CalibrationConfig,
    CompensateConfig,
    MemoryConfig,
    PruneConfig,
    QuantConfig,
    RetuneConfig,
    RunConfig,
    check,
)
from icp_jax.planning.workload import describe, resolved
from icp_jax.report.command import FLAGS, SHORT, repeat

RUNS = {
    "defaults": RunConfig("m", "o"),
    "names": RunConfig("my model's", 'a "b" $c', calibration=CalibrationConfig("t t.txt")),
    "all": RunConfig(
        "m", "o", PruneConfig("icp", 0.6, None, 0.7, 0.1, "qkv-f2", 0.02, 64),
        QuantConfig(4, 32, True, True, True), CompensateConfig(0, 1e-5, 0.9), RetuneConfig(0),
        CalibrationConfig("self:8", 8, 16, 3, True),
        MemoryConfig("disk", "bfloat16", 512, False, "1GiB", "2GiB"), "bfloat16", 7, 2,
    ),
    "pattern": RunConfig("m", "o", PruneConfig("wanda", pattern="2:4")),
    "layers": RunConfig(
        "m", "o", PruneConfig(include=("*.fc?",), exclude=("blocks.0.*", "*.fc1"),
        sparsity_of=("*.fc2=0.5",), keep_first=1, keep_last=2),
    ),
}  # fmt: skip


def test_options_are_spelled_as_the_command_line_does():
    option = {setting: f"--{name}" for names in GROUPS.values() for name, setting in names.items()}
    usual = {s: f"--{s.replace('_', '-')}" for s in option}
    assert {s: name for s, name in option.items() if name != usual[s]} == SHORT
    flags = [s for s in option if isinstance(getattr(kinds()[s][0](), kinds()[s][1]), bool)]
    assert set(flags) == set(FLAGS)


@pytest.mark.parametrize("name", RUNS)
def test_the_command_has_the_settings_of_the_run(name):
    run, said = RUNS[name], []
    words = shlex.split(repeat(dataclasses.asdict(run)))
    assert words[0] == "icp-jax"
    assert run_config(parse(words[1:], said.append)) == run and not said
    assert repeat(flat(run)) == repeat(dataclasses.asdict(run))  # as sweeps record them


@pytest.mark.parametrize(
    "method, solver",
    [(m, None) for m in ("icp", "icp+", "alps", "sparsegpt", "wanda", "magnitude")]
    + [("icp+", "alps")],
)
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_the_command_of_a_resolved_run_is_accepted(bundled, method, solver, pattern):
    sparsity = None if pattern else 0.5
    asked = RunConfig(str(bundled), "o", PruneConfig(method, sparsity, pattern, solver=solver))
    full = resolved(asked, describe(str(bundled)))
    words = shlex.split(repeat(dataclasses.asdict(full)))
    again = check(run_config(parse(words[1:])))  # refuses what the method does not use
    assert resolved(again, describe(str(bundled))) == full
