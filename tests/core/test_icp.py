"""The algorithm as a function: equal to the streaming driver, and fit for JAX's transformations."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import write_opt

import icp_jax
from icp_jax import CompensateConfig, QuantConfig, pruners, stats
from icp_jax.config import MemoryConfig
from icp_jax.core.fate import Fate
from icp_jax.core.hyper import Recipe, block_orders, hyper, parse, stack
from icp_jax.core.icp import icp
from icp_jax.streaming import transfer

SEED, BATCH_TOKENS = 3, 256  # a last batch that is not full
jitted = jax.jit(icp, static_argnames=("family", "recipe"))


@pytest.fixture(scope="module")
def bundled_model(bundled):
    return icp_jax.load(bundled)


@pytest.fixture(scope="module")
def longer():
    return np.random.default_rng(1).integers(3, 97, (7, 64)).astype(np.int32)


def shapes(model):
    return [model.shapes(t) for t in range(model.family.n_blocks)]


def recipe(windows, **settings):
    return Recipe(batch=transfer.batch_size(*windows.shape, tokens=BATCH_TOKENS), **settings)


def run(model, windows, made, **settings):
    """(params, metrics) of the whole run in one trace."""
    point = hyper(model.family, shapes(model), recipe=made, **settings)
    order = block_orders(SEED, model.family.n_blocks, point.orders, len(windows))
    return jitted(model.family, model.params, windows, point, order, made)


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


CASES = {
    "icp": {},
    "icp+": {"method": "icp+"},
    "sparsegpt": {"method": "sparsegpt"},
    "alps": {"method": "alps"},
    "icp+ with alps": {"method": "icp+", "solver": "alps"},
    "wanda": {"method": "wanda"},
    "magnitude": {"method": "magnitude"},
    "2:4": {"pattern": "2:4"},
    "4 bits": {"bits": 4},
}
FEW = ("icp+", "sparsegpt")  # the others are slow tests


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *(("bundled_model", case) for case in FEW),
        ("llama", "icp"),
        *(pytest.param("bundled_model", c, marks=pytest.mark.slow) for c in CASES if c not in FEW),
        *(pytest.param("llama", c, marks=pytest.mark.slow) for c in CASES if c != "icp"),
    ],
)
def test_both_drivers_give_the_same_bits(name, case, longer, request):
    """With the same order of samples and the same batches; errors are summed in another order.

    Models much smaller than these differ in the last bit: XLA chooses another form for products
    of tiny matrices where it can fuse them with what comes before.
    """
    model, settings = request.getfixturevalue(name), dict(CASES[case])
    bits, tuning = settings.pop("bits", None), CompensateConfig(epochs=2, lr=1e-3)
    streamed, reports = icp_jax.prune(
        model,
        longer,
        quant=QuantConfig(bits=bits),
        memory=MemoryConfig(batch_tokens=BATCH_TOKENS),
        **(
            {"compensation": tuning, "seed": SEED} if "icp" in settings.get("method", "icp") else {}
        ),
        **settings,
    )
    pattern = parse(settings.pop("pattern", None))
    made = recipe(longer, pattern=pattern, quantize=bits is not None, **settings)
    params, metrics = run(model, longer, made, lr=1e-3, epochs=2, bits=bits or 4)
    assert same(streamed.params, params)
    np.testing.assert_allclose(metrics.error, [r.error for r in reports], rtol=1e-5)
    np.testing.assert_array_equal(
        metrics.layers.zeros, [[x.zeros for x in r.layers] for r in reports]
    )
    for kind in ("compensation", "retune"):
        tuned, found = [getattr(r, kind) for r in reports], getattr(metrics, kind)
        assert [x is not None for x in tuned] == list(found.fate != Fate.NONE)
        for k, one in enumerate(tuned):
            if one is not None:
                np.testing.assert_allclose(found.before[k], one.before, rtol=1e-6)
                np.testing.assert_allclose(found.after[k], one.after, rtol=1e-6)
                np.testing.assert_allclose(found.epochs[k], one.epochs, rtol=1e-5)


def test_the_program_does_not_grow_with_depth(tmp_path, windows):
    sizes = []
    for depth in (3, 9):
        model = icp_jax.load(write_opt(tmp_path / str(depth), num_hidden_layers=depth))
        made = recipe(windows)
        point = hyper(model.family, shapes(model), recipe=made)
        order = block_orders(0, depth, 1, len(windows))
        args = (model.family, model.params, windows, point, order, made)
        sizes.append(len(jitted.lower(*args).as_text().splitlines()))
    assert sizes[1] < 1.2 * sizes[0]


def test_one_trace_serves_every_point(opt, windows):
    made, traced = recipe(windows), []

    @jax.jit
    def once(point, order):
        traced.append(1)
        return icp(opt.family, opt.params, windows, point, order, made)[1].error

    errors = []
    for sparsity, lr in ((0.5, 1e-3), (0.7, 1e-3), (0.7, 1e-4)):
        point = hyper(opt.family, shapes(opt), recipe=made, sparsity=sparsity, lr=lr)
        errors.append(float(once(point, block_orders(0, 3, 1, len(windows)))[-1]))
    assert len(traced) == 1 and len(set(errors)) == 3


@pytest.fixture(scope="module")
def sweep(opt, windows):
    """Four points, each by itself: (recipe, stacked points, order, errors)."""
    made = recipe(windows)
    points = [
        hyper(opt.family, shapes(opt), recipe=made, sparsity=sparsity, lr=lr)
        for sparsity in (0.5, 0.7)
        for lr in (1e-3, 1e-4)
    ]
    order = block_orders(0, 3, 1, len(windows))
    one = [jitted(opt.family, opt.params, windows, p, order, made) for p in points]
    return made, stack(points), order, one


def test_map_over_points_is_exact(opt, windows, sweep):
    made, points, order, one = sweep
    every = partial(icp, opt.family, opt.params, windows, order=order, recipe=made)
    mapped = jax.jit(lambda points: jax.lax.map(lambda p: every(hyper=p), points))(points)
    for k, single in enumerate(one):
        assert same(jax.tree.map(lambda x, k=k: x[k], mapped[0]["blocks"]), single[0]["blocks"])
        np.testing.assert_array_equal(mapped[1].error[k], single[1].error)


@pytest.mark.timeout(300)
def test_vmap_over_points(opt, windows, sweep):
    """Sums are in another order, and a mask's near ties fall otherwise."""
    made, points, order, one = sweep
    every = partial(icp, opt.family, opt.params, windows, order=order, recipe=made)
    errors = jax.jit(jax.vmap(lambda p: every(hyper=p)[1].error))(points)
    np.testing.assert_allclose(errors, [m.error for _, m in one], rtol=1e-2)


@pytest.mark.slow
def test_jvp_over_damping_is_the_slope(opt, windows):
    """Masks are piecewise constant: between two near points they are the same here."""
    made = recipe(windows, method="sparsegpt", pattern=(2, 4))
    point = hyper(opt.family, shapes(opt), recipe=made, damping=0.1)
    order = block_orders(0, 3, 0, len(windows))
    params = jax.tree.map(jnp.float32, opt.params)

    @jax.jit
    def layers(damping):
        now = point._replace(damping=damping)
        pruned, metrics = icp(opt.family, params, windows, now, order, made)
        return metrics.layers.error[0], jax.tree.map(lambda x: x != 0, pruned["blocks"]["0"])

    at, step = jnp.float32(0.1), np.float32(1e-4)
    (here, masks), (slope, _) = jax.jvp(layers, (at,), (jnp.float32(1),))
    there, others = layers(at + step)
    assert same(masks, others)
    fc2 = [spec.name for spec in opt.family.linears].index("fc2")
    rise = float(there[fc2]) - float(here[fc2])
    assert rise and float(slope[fc2]) == pytest.approx(rise / float(step), rel=0.05)


@pytest.mark.slow
def test_held_out_samples_are_measured_and_change_nothing(opt, windows):
    made = recipe(windows)
    point = hyper(opt.family, shapes(opt), recipe=made, lr=1e-3)
    order = block_orders(SEED, 3, 1, len(windows))
    params, metrics = jitted(opt.family, opt.params, windows, point, order, made)
    assert np.all(np.isnan(metrics.heldout))
    again, found = jitted(opt.family, opt.params, windows, point, order, made, windows[::-1])
    assert same(params, again)
    np.testing.assert_allclose(found.heldout, found.error, rtol=1e-5)
    _, other = jitted(opt.family, opt.params, windows, point, order, made, windows[:3] // 2 + 3)
    assert np.all(np.isfinite(other.heldout)) and not np.allclose(other.heldout, other.error)


def test_eval_shape_tells_what_comes_back(opt, windows):
    made = recipe(windows)
    point = hyper(opt.family, shapes(opt), recipe=made)
    order = block_orders(0, 3, 1, len(windows))
    params, metrics = jax.eval_shape(
        partial(icp, opt.family, recipe=made), opt.params, windows, point, order
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), opt.params
    )
    assert metrics.layers.zeros.shape == (3, 6) and metrics.compensation.epochs.shape == (3, 1)


def test_metrics_have_one_structure(opt, windows):
    found = [
        jax.tree.structure(run(opt, windows, recipe(windows, method=method))[1])
        for method in ("icp", "magnitude")
    ]
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_raised_damping_is_counted(opt, windows):
    """One sample of few tokens leaves H singular: float32 needs more damping than 1e-12."""
    made = Recipe(method="sparsegpt")
    point = hyper(opt.family, shapes(opt), recipe=made, damping=1e-12)
    order = block_orders(0, 3, 0, 1)
    params, metrics = jitted(opt.family, opt.params, windows[:1], point, order, made)
    assert np.any(metrics.layers.rungs > 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params["blocks"]))


@pytest.mark.slow
def test_without_undo_the_result_of_a_bad_rate_stays(opt, windows):
    wild = {"lr": 10.0, "epochs": 1}
    kept, metrics = run(opt, windows, recipe(windows), **wild)
    assert np.all(metrics.compensation.fate[1:] >= Fate.NOT_FINITE)
    base, _ = run(opt, windows, recipe(windows), lr=1e-4, epochs=0)
    assert same(kept, base)
    left, _ = run(opt, windows, dataclasses.replace(recipe(windows), undo="never"), **wild)
    assert not same(kept, left)


@pytest.mark.timeout(120)
def test_factors_under_vmap_do_not_wait_for_each_other():
    """Independent batched Choleskys in one program: on the CPU these hung for ever."""
    x = jax.random.normal(jax.random.key(0), (4, 12, 400, 192))

    @jax.jit
    def upper(x):
        every = jax.vmap(lambda rows: pruners.factor(stats.from_inputs(rows)).upper)
        return [every(part) for part in x]

    found = upper(x)
    for part, of in zip(x, found, strict=True):
        alone = pruners.factor(stats.from_inputs(part[3])).upper
        np.testing.assert_allclose(of[3], alone, rtol=1e-4, atol=1e-5)
