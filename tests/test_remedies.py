"""Numbers that fail are dealt with, and never in silence."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import write_opt
from test_compensation import affine, compensate
from test_pipeline import compilations

import icp_jax
from icp_jax import CompensateConfig, InputError
from icp_jax.cli import main
from icp_jax.core import pruners, stats
from icp_jax.core.damping import all_finite, climb, climb_on_host, ladder
from icp_jax.core.outcomes import (
    NO_GAIN,
    NOT_FINITE,
    ROSE,
    BlockReport,
    Compensation,
    LayerReport,
    check,
    remedies,
)
from icp_jax.models.spec import LinearSpec
from icp_jax.runs.records import block_record, read_block

TINY = 1e-9  # a damping that float32 does not notice


# ---------------------------------------------------------------- the damping ladder


def test_ladder():
    assert ladder(0.01, 2) == (0.1, 1.0)
    assert ladder(0.05, 2) == (0.5, 1.0)
    assert ladder(0.01, 0) == ()


@pytest.fixture(scope="module")
def singular():
    """Moments of inputs of rank one and huge scale: no Cholesky factor in float32."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1)) @ rng.normal(size=(1, 64)) * 1e4
    return stats.from_inputs(x.astype(np.float32))


CLIMBS = pytest.mark.parametrize("climbs", [climb, jax.jit(climb, static_argnums=0), climb_on_host])


@CLIMBS
def test_a_singular_hessian_climbs_to_the_first_rung_that_holds(singular, climbs):
    assert not all_finite(pruners.factor(singular, TINY))
    factor, rungs = climbs(pruners.factor, singular, np.float32(TINY))
    assert rungs > 0
    *below, last = (TINY, *ladder(TINY, int(rungs)))
    assert not all_finite(pruners.factor(singular, below[-1]))
    close = {"rtol": 1e-4, "atol": 1e-5 * float(jnp.abs(factor.upper).max())}
    np.testing.assert_allclose(factor.upper, pruners.factor(singular, last).upper, **close)
    # and it is the factor of the damped Hessian: H⁻¹ = Uᵀ U
    h = 2 * np.asarray(singular.second, np.float64)
    h += last * np.mean(np.diagonal(h)) * np.eye(len(h))
    upper = np.asarray(factor.upper, np.float64)
    np.testing.assert_allclose(upper.T @ upper @ h, np.eye(len(h)), atol=0.2)


@CLIMBS
def test_the_configured_damping_is_used_where_it_holds(singular, climbs):
    factor, rungs = climbs(pruners.factor, singular, np.float32(0.01))
    assert rungs == 0
    np.testing.assert_array_equal(factor.upper, pruners.factor(singular, np.float32(0.01)).upper)


def test_no_rung_compiles_anything(singular):
    climb_on_host(pruners.factor, singular, 0.01)
    assert compilations(lambda: climb_on_host(pruners.factor, singular, TINY)) == 0


@CLIMBS
def test_what_no_damping_helps_stays_at_the_last_rung(climbs):
    moments = stats.Moments(jnp.full((8, 8), jnp.nan), jnp.int32(9))
    factor, rungs = climbs(pruners.factor, moments, np.float32(0.01))
    assert rungs == 2 and not all_finite(factor)


# ---------------------------------------------------------------- compensation


@pytest.fixture
def problem():
    """Params a little off, inputs, and what they should give."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 5, 8)).astype(np.float32)
    true = {"kernel": rng.normal(size=(8, 4)), "bias": rng.normal(size=4)}
    true = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), true)
    return jax.tree.map(lambda a: a + 0.1, true), x, np.asarray(affine(true, x))


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("donated", [False, True])
def test_a_loss_that_rises_gives_the_params_back(problem, donated):
    params, x, y = problem
    stored = jax.tree.map(np.array, params)
    again = (lambda: jax.tree.map(jnp.asarray, stored)) if donated else None
    tuned, report = compensate(affine, params, x, y, lr=10.0, again=again)
    assert report.restored == ROSE and report.after > report.before
    assert equal(tuned, stored)
    if not donated:
        assert equal(params, stored)


def test_a_loss_that_is_not_finite_ends_it_and_gives_the_params_back(problem):
    params, x, y = problem
    steps = []
    y = np.where(np.arange(24)[:, None, None] == 13, np.nan, y)  # not in the probe
    tuned, report = compensate(
        affine, params, x, y, epochs=5, tick=lambda done, total, loss: steps.append(done)
    )
    assert report.restored == NOT_FINITE and equal(tuned, params)
    assert len(report.epochs) == 1 and max(steps) <= 24
    assert np.isfinite(report.before)


def test_rounding_is_no_divergence(problem):
    """Nothing to repair: Adam's steps can only make it worse, by next to nothing."""
    params, x, _ = problem
    y = np.asarray(affine(params, x)) + np.float32(1e-6)
    tuned, report = compensate(affine, params, x, y, lr=1e-4)
    assert report.restored == NO_GAIN and equal(tuned, params)


def test_where_only_the_probe_says_worse_all_samples_decide(problem):
    """One sample is the probe; the others want what is bad for it."""
    params, x, y = problem
    y = np.concatenate([np.asarray(affine(params, x[:1])), y[1:]])  # the probe has nothing to gain
    tuned, report = compensate(affine, params, x[:16], y[:16], epochs=5, lr=1e-2)
    assert report.restored == "" and not equal(tuned, params)
    mean = [float(np.mean((np.asarray(affine(p, x[:16])) - y[:16]) ** 2)) for p in (params, tuned)]
    assert mean[1] < mean[0]
    assert (report.before, report.after) == pytest.approx(mean, rel=1e-4)
    assert np.mean((np.asarray(affine(tuned, x[0])) - y[0]) ** 2) > 0


# ---------------------------------------------------------------- how much is too much


TAPS = {"q": "attention", "k": "attention", "fc": "mlp"}


def family(blocks):
    """What `check` asks of a family."""
    linears = tuple(LinearSpec(name, tap, name) for name, tap in TAPS.items())
    return types.SimpleNamespace(n_blocks=blocks, linears=linears)


def report(block, climbed=(), restored=""):
    layers = tuple(
        LayerReport(name, 10, 5, 0.1, climbed if TAPS[name] == "attention" else ()) for name in TAPS
    )
    return BlockReport(block, layers, 0.1, Compensation(1.0, 2.0, (1.5,), restored))


def test_more_than_a_tenth_ends_the_run_with_the_list():
    check([report(0, (0.1,))], family(1))  # a single one is never too many
    check([report(2, (), ROSE)], family(3))
    check([report(t, (), NO_GAIN) for t in range(5)], family(5))
    with pytest.raises(
        InputError, match=r"tenth of the .*: block 0: .* q, k .* 0.1; block 3.*damping may"
    ):
        check([report(0, (0.1,)), report(3, (0.1, 1.0))], family(5))
    with pytest.raises(InputError, match="tenth of the .*: block 1.*; block 2.*lr"):
        check([report(1, (), ROSE), report(2, (), NOT_FINITE)], family(5))
    # of both kinds together: q and k of two blocks, and all three of a third
    many = [report(0, (0.1,)), report(3, (0.1,)), report(4, (), ROSE)]
    check(many, family(24))
    with pytest.raises(InputError, match="block 0: the H.*; block 3: .*; block 4: comp.*damp.*lr"):
        check(many, family(23))
    # a block's layers count once
    check([report(1, (0.1,), ROSE)], family(10))


def test_remedies_in_words():
    lines = remedies(report(3, (0.1, 1.0), ROSE))
    assert lines == [
        "block 3: the Hessian of q, k was not positive definite; damping raised to 1",
        "block 3: compensation undone, loss rose; its loss went from 1 to 2",
    ]
    assert remedies(report(3)) == []


def test_records_are_json_and_come_back():
    """NaN is no JSON: it is written as null, and read as NaN."""
    block = report(2, (0.1,), NOT_FINITE)
    block = dataclasses.replace(
        block, compensation=Compensation(1.0, np.nan, (np.nan,), NOT_FINITE)
    )
    text = json.dumps(block_record(block), allow_nan=False)
    again = read_block(json.loads(text))
    assert again.layers == block.layers and again.compensation.restored == NOT_FINITE
    assert np.isnan(again.compensation.after) and np.isnan(again.compensation.epochs[0])
    assert json.dumps(block_record(again)) == text


# ---------------------------------------------------------------- in a run


def test_in_the_library(opt_folder, tokens):
    model = icp_jax.load(opt_folder)
    with pytest.raises(
        InputError, match="a tenth of the layers needed a remedy: block 1.*; block 2"
    ):
        icp_jax.prune(model, tokens, compensation=CompensateConfig(lr=10.0))


@pytest.fixture
def place(tmp_path, bundled, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text((bundled / "calibration.txt").read_text()[:6000])
    return tmp_path


ARGUMENTS = ["prune", "model", "out", "--sparsity", "0.5"]
ARGUMENTS += ["--data", "text.txt", "--samples", "6"]


def test_one_block_restored_is_in_the_record_and_the_table(place, capsys):
    """Two blocks, one of them tuned: one restored block is no reason to end the run."""
    write_opt(place / "model", num_hidden_layers=2)
    assert main([*ARGUMENTS, "--compensate.lr", "10"]) == 0
    record = json.loads((place / "out" / "icp_run.json").read_text())
    assert record["blocks"][1]["compensation"]["restored"] == ROSE
    (line,) = record["remedies"]
    assert line in capsys.readouterr().out and "block 1: compensation undone" in line
    before, after = (icp_jax.load(place / name).params["blocks"]["1"] for name in ("model", "out"))
    for name, layer in before.items():  # as without compensation: only kernels changed
        for leaf in set(layer) - {"kernel"}:
            np.testing.assert_array_equal(layer[leaf], after[name][leaf])


def spoil_tap(folder, block, scale):
    """Make every input of one block's q, k, v the same number: a Hessian of rank one, and one
    for out_proj, whose inputs are then the same for every token."""
    from safetensors.numpy import load_file, save_file

    tensors = dict(load_file(folder / "model.safetensors"))
    norm = f"model.decoder.layers.{block}.self_attn_layer_norm"
    tensors[f"{norm}.weight"] = np.zeros_like(tensors[f"{norm}.weight"])
    tensors[f"{norm}.bias"] = np.full_like(tensors[f"{norm}.bias"], scale)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_singular_layer_is_in_the_record_and_the_table(place, capsys):
    """One Hessian of eight: no reason to end the run."""
    write_opt(place / "model", num_hidden_layers=2)
    spoil_tap(place / "model", 1, 100.0)
    options = ["--prune.damping", "1e-5", "--method", "sparsegpt"]
    assert main([*ARGUMENTS, *options, "--samples", "30"]) == 0
    record = json.loads((place / "out" / "icp_run.json").read_text())
    climbed = {
        (block["block"], layer["name"]): layer["rungs"]
        for block in record["blocks"]
        for layer in block["layers"]
        if layer["rungs"]
    }
    assert climbed == {(1, "out_proj"): [1e-4]}
    said = "block 1: the Hessian of out_proj was not positive definite; damping raised to 0.0001"
    assert record["remedies"] == [said] and said in capsys.readouterr().out


def test_singular_layers_everywhere_end_the_run(place, capsys):
    write_opt(place / "model", num_hidden_layers=3)
    for block in range(3):
        spoil_tap(place / "model", block, 100.0)
    assert main([*ARGUMENTS, "--prune.damping", str(TINY), "--method", "sparsegpt"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("icp-jax")]
    assert "more than a tenth of the layers needed a remedy: block 0: the Hessian of q_proj" in line
    assert sorted(p.name for p in place.iterdir()) == ["model", "text.txt"]


def test_a_layer_that_no_damping_helps_is_named(opt_folder, tokens, monkeypatch):
    model = icp_jax.load(opt_folder)
    real = stats.moments

    def moments(sums):
        found = real(sums)
        wide = found.second.shape[0] == 128  # fc2's inputs
        return found._replace(second=jnp.full_like(found.second, jnp.nan)) if wide else found

    monkeypatch.setattr(stats, "moments", moments)
    with pytest.raises(InputError, match="layer fc2 of block 0: not positive definite with a damp"):
        icp_jax.prune(model, tokens)
