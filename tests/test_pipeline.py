"""The loop: what ICP reduces to, what the streams are, what compiles, what repeats."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import pin_streams, write_opt

import icp_jax
from icp_jax import CompensateConfig, InputError
from icp_jax.streaming import loop

SLOW_LR = CompensateConfig(epochs=2, lr=1e-3)


@pytest.fixture(scope="module")
def model(opt_folder):
    return icp_jax.load(opt_folder)


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in pairs)


def test_without_compensation_and_shifts_icp_is_sparsegpt(model, tokens):
    none = CompensateConfig(epochs=0)
    icp, _ = icp_jax.prune(model, tokens, method="icp", alpha=1.0, beta=0.0, compensation=none)
    gpt, _ = icp_jax.prune(model, tokens, method="sparsegpt")
    assert same(icp.params, gpt.params)
    assert not same(icp.params, model.params)


def test_same_seed_same_bytes_other_seed_others(model, tokens):
    first, _ = icp_jax.prune(model, tokens, compensation=SLOW_LR)
    again, _ = icp_jax.prune(model, tokens, compensation=SLOW_LR)
    other, _ = icp_jax.prune(model, tokens, compensation=SLOW_LR, seed=1)
    assert same(first.params, again.params)
    assert not same(first.params, other.params)


def test_blocks_in_bfloat16_cost_little(model, tokens):
    """What an accelerator does by default, and `--dtype bfloat16` anywhere."""
    whole, half = (
        icp_jax.prune(model, tokens, method="sparsegpt", dtype=dtype)[1]
        for dtype in ("float32", "bfloat16")
    )
    for one, other in zip(whole, half, strict=True):
        assert one.error != other.error
        assert other.error == pytest.approx(one.error, rel=0.05)


def test_dense_stream_is_the_unpruned_model(model, tokens, monkeypatch):
    """What compensation is given as targets are the unpruned hidden states, block by block."""
    targets = []
    real = loop.compensate

    def spy(tuning, *rest):
        targets.append(tuning.arrays[1].copy())
        return real(tuning, *rest)

    monkeypatch.setattr(loop, "compensate", spy)
    icp_jax.prune(model, tokens)
    family, params = model.family, model.params
    x = family.embed.apply({"params": params["embed"]}, tokens)
    hidden = []
    for t in range(family.n_blocks):
        x = family.block_at(t).apply({"params": params["blocks"][str(t)]}, x)
        hidden.append(np.asarray(x))
    assert len(targets) == family.n_blocks - 1
    for want, target in zip(hidden[1:], targets, strict=True):
        np.testing.assert_allclose(target, want, atol=1e-5)


@pytest.mark.parametrize("method", ["icp", "sparsegpt", "wanda", "magnitude"])
def test_exact_total_and_what_stays_untouched(model, tokens, method):
    pruned, reports = icp_jax.prune(model, tokens, method=method, sparsity=0.6)
    kernels = [
        leaf
        for block in pruned.params["blocks"].values()
        for name, layer in block.items()
        for key, leaf in layer.items()
        if key == "kernel"
    ]
    size = sum(k.size for k in kernels)
    assert sum(layer.zeros for r in reports for layer in r.layers) == round(0.6 * size)
    assert sum((np.asarray(k) == 0).sum() for k in kernels) >= round(0.6 * size)
    assert same(pruned.params["embed"], model.params["embed"])
    assert same(pruned.params["head"], model.params["head"])
    block = "0" if method == "icp" else "1"  # compensation tunes norms and biases from block 1 on
    old, new = model.params["blocks"][block], pruned.params["blocks"][block]
    assert same(old["self_attn_layer_norm"], new["self_attn_layer_norm"])
    assert old["fc1"]["bias"].tobytes() == new["fc1"]["bias"].tobytes()


def test_ragged_batches_change_nothing(model, monkeypatch):
    """N that is no multiple of the batch gives the same layers, but for the order of sums."""
    tokens = np.random.default_rng(3).integers(3, 2048, (7, 24)).astype(np.int32)
    _, whole = icp_jax.prune(model, tokens, method="sparsegpt")
    monkeypatch.setattr("icp_jax.streaming.transfer.BATCH_TOKENS", {"cpu": 24 * 3})
    _, ragged = icp_jax.prune(model, tokens, method="sparsegpt")
    for a, b in zip(whole, ragged, strict=True):
        assert a.error == pytest.approx(b.error, rel=1e-2)
        for x, y in zip(a.layers, b.layers, strict=True):
            assert (x.zeros, x.error) == (y.zeros, pytest.approx(y.error, rel=1e-2))


def test_a_block_that_is_not_finite_is_named(model, tokens):
    blocks = {k: dict(v) for k, v in model.params["blocks"].items()}
    fc2 = blocks["1"]["fc2"]
    blocks["1"]["fc2"] = {**fc2, "bias": np.full_like(fc2["bias"], np.nan)}
    broken = dataclasses.replace(model, params={**model.params, "blocks": blocks})
    with pytest.raises(InputError, match="block 1 returns values that are not finite"):
        icp_jax.prune(broken, tokens)


def test_custom_rearrangement(model, tokens):
    _, reports = icp_jax.prune(model, tokens, rearrange="o-f1", beta=0.3, alpha=1.0, sparsity=0.5)
    rates = {layer.name: layer.zeros / layer.size for layer in reports[0].layers}
    assert rates["out_proj"] == pytest.approx(0.35, abs=1e-3)
    assert rates["fc1"] > 0.5 and rates["q_proj"] == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(InputError, match="qkv-f2"):
        icp_jax.prune(model, tokens, rearrange="x-f1")


def compilations(action):
    """How many XLA programs `action` compiles."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        action()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(seen)


@pytest.mark.parametrize("place", ["host", "samples"])
def test_blocks_share_compiled_functions_and_settings_compile_nothing(
    tmp_path, tokens, monkeypatch, place
):
    if place == "samples":
        pin_streams(monkeypatch)
    models = {n: icp_jax.load(write_opt(tmp_path / str(n), num_hidden_layers=n)) for n in (2, 6)}

    def run(n, **settings):
        compensation = CompensateConfig(
            epochs=settings.pop("epochs", 1), lr=settings.pop("lr", 1e-4)
        )
        settings = {"sparsity": 0.5, **settings}
        return lambda: icp_jax.prune(models[n], tokens, compensation=compensation, **settings)

    jax.clear_caches()
    two = compilations(run(2))
    jax.clear_caches()
    six = compilations(run(6))
    assert two == six > 0
    others = run(6, sparsity=0.4, alpha=0.9, beta=0.1, rearrange="qkv-o", lr=3e-3, epochs=2)
    assert compilations(others) == 0


def test_compensation_lowers_its_loss_on_every_block(bundled):
    model = icp_jax.load(bundled)
    tokens = icp_jax.calibrate(model, str(bundled / "calibration.txt"), samples=16)
    _, reports = icp_jax.prune(model, tokens, compensation=CompensateConfig(epochs=1, lr=5e-4))
    tuned = [r.compensation for r in reports]
    assert tuned[0] is None and len(tuned) == 6
    assert all(c.after < c.before for c in tuned[1:]), tuned
