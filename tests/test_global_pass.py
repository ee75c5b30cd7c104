"""The global pass with one block on the device at a time: as in memory, and as a command."""

import json

import jax
import numpy as np
import pytest
from conftest import pin_streams, write_llama, write_opt
from runs import error, helpful

import icp_jax
from icp_jax.cli import main
from icp_jax.core.distill import distill, steps
from icp_jax.streaming import distill as streaming
from icp_jax.streaming.distill import Hooks
from icp_jax.streaming.distill_steps import Pass

COMMAND = ["distill", "pruned", "dense", "--out", "out", "--data", "ids.npy", "--lr", "3e-3"]


def folder_of(place, write):
    """A dense model, the same pruned, and rows of token ids."""
    write(place / "dense", num_hidden_layers=2, vocab_size=97)
    np.save(place / "ids.npy", np.random.default_rng(1).integers(3, 97, (12, 16)).astype(np.int32))
    options = ["--method", "magnitude", "--sparsity", "0.5", "--data", str(place / "ids.npy")]
    assert main(["prune", str(place / "dense"), str(place / "pruned"), *options]) == 0
    return place


def loaded(folder):
    """(pruned, dense, windows)."""
    pruned, dense = (icp_jax.load(folder / name) for name in ("pruned", "dense"))
    return pruned, dense, np.load(folder / "ids.npy")


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("opt"), write_opt)


@pytest.fixture(scope="module", params=["opt", pytest.param("llama", marks=pytest.mark.slow)])
def models(request, tmp_path_factory):
    if request.param == "opt":
        return loaded(request.getfixturevalue("opt"))
    return loaded(folder_of(tmp_path_factory.mktemp("llama"), write_llama))


@pytest.fixture
def place(opt, tmp_path, monkeypatch):
    for name in ("dense", "pruned", "ids.npy"):
        (tmp_path / name).symlink_to(opt / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def streamed(models, made, hooks=None, **given):
    pruned, dense, windows = models
    return streaming.distill(pruned, dense, windows[:5], windows[5:], Pass(made, **given), hooks)


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def zeros_stay(pruned, blocks):
    for t, block in enumerate(blocks):
        for spec in pruned.family.linears:
            old, new = (np.asarray(b[spec.name]["kernel"]) for b in (pruned.block(t), block))
            assert old.dtype == new.dtype and not np.array_equal(old, new)
            assert not np.any(new[old == 0])


@pytest.mark.slow
def test_it_is_the_pass_in_memory(models):
    """Not to the bit: within one program, XLA sums a block's gradient in another order."""
    pruned, dense, windows = models
    made = steps(5, epochs=2, lr=3e-3, batch=2)
    whole = jax.jit(distill, static_argnums=0)
    trees, split = (pruned.params, dense.params), (windows[:5], windows[5:])
    params, metrics = whole(dense.family, *trees, *split, rates=made.rates, order=made.order)
    found = streamed(models, made)
    assert found.metrics.best == metrics.best > 0 and found.metrics.steps.shape == (2, 2)
    for one, other in zip(metrics, found.metrics, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    for t, block in enumerate(found.best):
        expected = params["blocks"][str(t)]
        # the loss does not depend on the bias of the keys: its gradient is rounding alone
        expected["k_proj"].pop("bias", None), block["k_proj"].pop("bias", None)
        for one, other in zip(*map(jax.tree.leaves, (expected, block)), strict=True):
            assert one.dtype == other.dtype
            wide = [np.asarray(x, np.float32) for x in (one, other)]
            np.testing.assert_allclose(*wide, rtol=1e-5, atol=1e-5 * np.abs(wide[0]).max())


def test_it_goes_on_after_an_epoch(models):
    made = steps(5, epochs=2, lr=3e-3, batch=2)
    seen, ticks = [], []
    hooks = Hooks(
        lambda done, total, loss: ticks.append((done, total)),
        lambda found: seen.append(jax.tree.map(np.array, found)),  # as a file keeps it
    )
    found = streamed(models, made, hooks)
    assert len(seen) == 2 and ticks[-1][0] == ticks[-1][1]
    assert [done for done, _ in ticks] == sorted(done for done, _ in ticks)
    again = streamed(models, made, Hooks(begun=seen[0]), place="disk")
    assert same(again, found)
    zeros_stay(models[0], found.best)


def test_streams_in_pinned_memory_change_nothing(models, monkeypatch):
    made = steps(5, lr=3e-3, batch=2)
    found = streamed(models, made)
    pin_streams(monkeypatch)
    assert same(streamed(models, made), found)


def test_a_loss_that_is_not_finite_ends_it(models):
    found = streamed(models, steps(5, epochs=3, lr=1e30, batch=2))
    assert found.best is None and found.metrics.best == 0
    assert found.epochs < 3 and np.isnan(found.metrics.heldout[-1])


# ---------------------------------------------------------------- the command


def test_predictions_come_nearer_and_zeros_stay(place, capsys):
    assert main([*COMMAND, "--epochs", "2", "--batch", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    found = record["global_pass"]
    assert found["best"] > 0 and found["kl"][found["best"]] == min(found["kl"]) < found["kl"][0]
    assert (found["windows"], found["heldout_windows"]) == (11, 1)
    assert record["sparsity"] == pytest.approx(0.5, abs=1e-4) and len(record["blocks"]) == 2
    kept = json.loads((place / "out" / "icp_run.json").read_text())
    assert kept["global_pass"] == found
    page = (place / "out" / "report.html").read_text()
    assert "icp-jax distill pruned dense" in page and "Global pass" in page
    assert "Then all blocks were tuned together on 11 windows, in 2 epochs." in page
    pruned, dense, windows = loaded(place)
    tuned = icp_jax.load("out")
    zeros_stay(pruned, [tuned.block(t) for t in range(2)])
    kl = [icp_jax.evaluate(m, windows[-1:], against=dense).kl for m in (pruned, tuned)]
    assert kl[1] < kl[0]
    assert sorted(p.name for p in place.iterdir()) == ["dense", "ids.npy", "out", "pruned"]


def test_a_model_from_another_tool_is_taken(place, capsys):
    (place / "other").mkdir()
    for path in (place / "pruned").iterdir():
        if path.name not in ("icp_run.json", "report.html"):
            (place / "other" / path.name).symlink_to(path)
    args = [arg.replace("pruned", "other") for arg in COMMAND]
    assert main([*args, "--batch", "2", "--quiet"]) == 0
    assert "epoch 1" in capsys.readouterr().out and not (place / "out" / "report.html").exists()
    record = json.loads((place / "out" / "icp_run.json").read_text())
    assert record["blocks"] == [] and record["global_pass"]["pruned"] == "other"
    assert main(["report", "out"]) == 2
    assert "without the record of a run" in error(capsys)


def test_a_rate_that_does_harm_leaves_the_weights(place, capsys):
    assert main([*COMMAND[:-1], "100", "--batch", "2", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "the given weights: no epoch was better" in said and "as given" in said
    files = [place / name / "model.safetensors" for name in ("pruned", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def quantized(place):
    write_opt(place / "q", num_hidden_layers=2, vocab_size=97)
    config = {"quant": {"bits": 4}, "prune": {"method": "icp"}}
    (place / "q" / "icp_run.json").write_text(json.dumps({"config": config, "blocks": []}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--epochs": "0"}, "epochs must be at least 1"),
        ({"--lr": "0"}, "lr must be a positive number"),
        ({"--batch": "0"}, "batch must be at least 1"),
        ({"--samples": "1"}, "one window leaves none to hold out"),
        ({"dense": "wide"}, "give the model that was pruned"),
        ({"pruned": "q", "dense": "q"}, "quantized to 4 bits"),
        ({"pruned": "nowhere"}, "nowhere"),
        ({"out": "pruned"}, "exists already"),
    ],
)
def test_what_it_cannot_do_is_one_line(place, changes, expected, capsys):
    args = [changes.get(arg, arg) for arg in COMMAND[: -2 if "--lr" in changes else None]]
    args += [word for name, value in changes.items() if name[0] == "-" for word in (name, value)]
    if "wide" in args:
        write_llama(place / "wide", num_hidden_layers=1)
    if "q" in args:
        quantized(place)
    before = {p.name for p in place.iterdir()}
    assert main([*args, "--quiet"]) == 2
    line = error(capsys)
    assert expected in line and helpful(line, args)
    assert {p.name for p in place.iterdir()} == before
