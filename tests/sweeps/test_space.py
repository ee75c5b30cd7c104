"""The helpers that make points and ranges, and how a point changes the base."""

import pytest

from icp_jax import CompensateConfig, InputError, PruneConfig, RunConfig
from icp_jax.sweeps import choice, grid, integers, log_uniform, points, uniform
from icp_jax.sweeps.settings import at

BASE = RunConfig(prune=PruneConfig(sparsity=0.5, beta=0.1), compensate=CompensateConfig(lr=1e-3))


def test_a_grid_has_all_combinations_in_order():
    found = grid({"a": [1, 2], "b": ["x", "y"]})
    assert found == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert grid({}) == [] and grid({"a": []}) == []


def test_points_take_values_together():
    assert points({"a": (1, 2), "b": (3, 4)}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]


@pytest.mark.parametrize(
    "made, message",
    [
        (lambda: points({"a": [1], "b": [1, 2]}), r"as many values of every setting, got \[1, 2\]"),
        (lambda: grid({"prune.method": "icp"}), "prune.method: give a list of values, got 'icp'"),
        (lambda: grid({"seed": 3}), "seed: give a list of values, got 3"),
        (lambda: uniform(2, 1), "the lower bound must be below the upper, got 2, 1"),
        (lambda: integers(1, 1), "below the upper"),
        (lambda: log_uniform(0, 1), "positive lower bound"),
        (choice, "has no values: give at least one"),
    ],
)
def test_what_is_wrong_with_values(made, message):
    with pytest.raises(InputError, match=message):
        made()


def test_a_point_changes_the_base():
    base = RunConfig(
        prune=PruneConfig(sparsity=0.5, beta=0.1), compensate=CompensateConfig(lr=1e-3)
    )
    found = at(base, {"prune.sparsity": 0.6, "compensate.epochs": 2, "quant.bits": 4})
    assert found.prune == PruneConfig(sparsity=0.6, beta=0.1) and found.quant.bits == 4
    assert found.compensate == CompensateConfig(epochs=2, lr=1e-3)


def test_another_method_or_pattern_resets_what_it_does_not_use():
    base = RunConfig(
        prune=PruneConfig(sparsity=0.5, beta=0.1), compensate=CompensateConfig(lr=1e-3)
    )
    wanda = at(base, {"prune.method": "wanda", "prune.alpha": 0.9})
    assert wanda.prune == PruneConfig(method="wanda", sparsity=0.5, alpha=0.9)
    assert wanda.compensate == CompensateConfig()
    assert at(BASE, {"prune.pattern": "2:4"}).prune == PruneConfig(pattern="2:4")


@pytest.mark.parametrize(
    "point, message",
    [
        ({"prune.sparsty": 0.5}, "'prune.sparsty' is not a setting"),
        ({"model": "x"}, "model is the same for all points: set it in the sweep's base"),
        ({"memory.streams": "disk"}, "the same for all points"),
        ({"prune.sparsity": 2}, r"point prune.sparsity 2: prune.sparsity must be in \[0, 1\)"),
        (
            {"prune.method": "wonda"},
            "prune.method must be icp, icp",
        ),
        ({"prune.method": ["icp"]}, "prune.method must be icp"),
        ({"prune.pattern": 3}, "prune.pattern must be text"),
        (
            {"prune.method": "wanda", "compensate.lr": 1e-3},
            "compensate.lr applies to icp and",
        ),
        ({"prune.pattern": "2:4", "prune.alpha": 1}, "prune.alpha applies to unstructured"),
    ],
)
def test_a_bad_point_is_named(point, message):
    with pytest.raises(InputError, match=message):
        at(RunConfig(), point)
