"""Which layers are pruned: globs, exact totals, and both drivers alike."""

import jax
import numpy as np
import pytest
from conftest import write_llama
from hypothesis import given, settings
from hypothesis import strategies as st

import icp_jax
from icp_jax import CompensateConfig, PruneConfig, QuantConfig
from icp_jax.config import MemoryConfig
from icp_jax.core.choice import LEFT, Choice, chosen
from icp_jax.core.counts import Target, counts
from icp_jax.core.hyper import Recipe, block_orders, hyper
from icp_jax.core.icp import icp
from icp_jax.errors import Infeasible, InputError
from icp_jax.streaming import transfer

NAMES = [["q", "fc2"]] * 12


def shapes(model):
    return [model.shapes(t) for t in range(model.family.n_blocks)]


def whole_names(found):
    return {f"{t}.{name}" for t, block in enumerate(found) for name in block}


def test_globs_over_block_and_layer():
    assert whole_names(chosen(Choice(), NAMES)) == {f"{t}.{k}" for t in range(12) for k in NAMES[0]}
    first = chosen(Choice(include=("blocks.1.*",)), NAMES)
    assert whole_names(first) == {"1.q", "1.fc2"}  # and not block 10 or 11
    less = chosen(Choice(exclude=("*.fc2", "blocks.0.*"), keep_first=2, keep_last=1), NAMES)
    assert whole_names(less) == {f"{t}.q" for t in range(2, 11)}


def test_of_several_sparsities_the_last_counts():
    found = chosen(Choice(sparsity_of=("*.fc2=0.5", "blocks.3.*=0.25")), NAMES)
    assert found[2] == {"q": None, "fc2": 0.5}
    assert found[3] == {"q": 0.25, "fc2": 0.25}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(include=("blocks.*.fc3",)), "prune.include 'blocks.*.fc3' matches no layer: use"),
        (Choice(exclude=("q",)), "prune.exclude 'q' matches no layer: use names from blocks.0.q"),
        (Choice(sparsity_of=("*.fc2=0.5",), exclude=("*.fc2",)), "matches no layer that is pruned"),
        (Choice(sparsity_of=("*.fc2",)), "is not GLOB=S with S in"),
        (Choice(sparsity_of=("*.fc2=1",)), "is not GLOB=S with S in"),
        (Choice(sparsity_of=("*.fc2=nan",)), "is not GLOB=S with S in"),
        (Choice(keep_first=7, keep_last=5), "leave no layer to prune"),
        (Choice(exclude=("*",)), "leave no layer to prune"),
    ],
)
def test_what_is_refused(choice, message):
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        chosen(choice, NAMES)


globs = st.sampled_from(["*", "blocks.0.*", "*.fc?", "*.q_proj", "*.[qkv]_proj", "blocks.1.fc2"])


@settings(max_examples=60, deadline=None)
@given(
    include=st.lists(globs, max_size=2),
    exclude=st.lists(globs.filter(lambda glob: glob != "*"), max_size=2),
    own=st.lists(st.tuples(globs, st.floats(0, 0.99)), max_size=2),
    kept=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    sparsity=st.floats(0, 0.99),
    alpha=st.floats(0.3, 1),
    beta=st.floats(0, 1),
)
def test_the_mean_of_the_chosen_layers_is_exact(
    opt, include, exclude, own, kept, sparsity, alpha, beta
):
    choice = Choice(tuple(include), tuple(exclude), tuple(f"{g}={s}" for g, s in own), *kept)
    target = Target(sparsity, None, alpha, beta, None, choice)
    try:
        found = counts(opt.family, shapes(opt), target)
    except InputError:
        return
    sizes = [{k: i * o for k, (i, o) in block.items()} for block in shapes(opt)]
    fixed = chosen(choice, shapes(opt))
    zeros = size = 0
    for t, block in enumerate(found):
        for name, count in block.items():
            if name not in fixed[t]:
                assert count == LEFT
                continue
            assert 0 <= count <= sizes[t][name]
            zeros, size = zeros + count, size + sizes[t][name]
            if fixed[t][name] is not None:
                assert count == round(fixed[t][name] * sizes[t][name])
    assert zeros == round(sparsity * size)


def test_a_total_that_cannot_be_reached(opt):
    whole = {"choice": Choice(sparsity_of=("*=0.5",)), "pattern": None}
    with pytest.raises(Infeasible, match=r"set it to 0.500000, or leave it out"):
        counts(opt.family, shapes(opt), Target(sparsity=0.6, **whole))
    for block in counts(opt.family, shapes(opt), Target(**whole)):
        assert all(block.values())
    some = Choice(sparsity_of=("*.fc2=0.9",))
    with pytest.raises(Infeasible, match=r"set it to between 0\.\d+ and 0\.9\d+") as raised:
        counts(opt.family, shapes(opt), Target(sparsity=0.1, choice=some))
    low = float(str(raised.value).split("between ")[1].split()[0])
    assert counts(opt.family, shapes(opt), Target(low + 1e-3, alpha=1, beta=0, choice=some))


def test_a_pattern_and_a_group_bind_only_the_chosen(opt):
    odd = [{**block, "fc2": (block["fc2"][0] + 1, block["fc2"][1])} for block in shapes(opt)]
    with pytest.raises(InputError, match="fc2 has"):
        counts(opt.family, odd, Target(pattern=(2, 4)))
    without = Choice(exclude=("*.fc2",))
    found = counts(opt.family, odd, Target(pattern=(2, 4), choice=without), group=4)
    assert {block["fc2"] for block in found} == {LEFT}
    with pytest.raises(InputError, match="leave sparsity_of out"):
        counts(opt.family, odd, Target(pattern=(2, 4), choice=Choice(sparsity_of=("*=0.5",))))


CHOSEN = Choice(exclude=("*.k_proj", "blocks.1.fc1"), keep_first=1)
CASES = {
    "icp": {},
    "sparsegpt": {"method": "sparsegpt"},
    "wanda 2:4": {"method": "wanda", "pattern": "2:4"},
    "icp 2:4 in 4 bits": {"pattern": "2:4", "bits": 4},
}
jitted = jax.jit(icp, static_argnames=("family", "recipe"))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] * (name != "icp 2:4 in 4 bits"))
        for name, case in CASES.items()
    ],
)
def test_both_drivers_leave_the_same_layers(opt, case):
    windows = np.random.default_rng(1).integers(3, 97, (7, 24)).astype(np.int32)
    method, pattern, bits = (case.get(k) for k in ("method", "pattern", "bits"))
    made = Recipe(
        method or "icp",
        pattern and (2, 4),
        batch=transfer.batch_size(*windows.shape, tokens=256),
        quantize=bits is not None,
    )
    sparsity = None if pattern else 0.6
    point = hyper(
        opt.family, shapes(opt), recipe=made, sparsity=sparsity, bits=bits or 0, choice=CHOSEN
    )
    order = block_orders(3, opt.family.n_blocks, len(point.rates), len(windows))
    params, metrics = jitted(opt.family, opt.params, windows, point, order, made)
    streamed, reports = icp_jax.prune(
        opt,
        windows,
        PruneConfig(method or "icp", sparsity, pattern, exclude=CHOSEN.exclude, keep_first=1),
        CompensateConfig(),
        QuantConfig(bits=bits),
        memory=MemoryConfig(batch_tokens=256),
        seed=3 if made.method == "icp" else None,
    )
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(streamed.params), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    for t, block in enumerate(reports):
        for k, layer in enumerate(block.layers):
            left = point.counts[t, k] == LEFT
            assert layer.zeros == metrics.layers.zeros[t, k]
            assert (layer.error == 0) == left
            old, new = (m.params["blocks"][str(t)][layer.name]["kernel"] for m in (opt, streamed))
            if left and (made.method != "icp" or t < 2):  # nothing before block 1 is pruned
                assert np.array_equal(old, new)
            assert (layer.zeros < 0.1 * layer.size) == left


def test_a_compensated_block_that_is_left_stays_dense(opt):
    windows = np.random.default_rng(1).integers(3, 97, (7, 24)).astype(np.int32)
    pruned, reports = icp_jax.prune(opt, windows, sparsity=0.6, keep_last=1)
    last = reports[-1]
    assert last.compensation is not None
    assert sum(layer.zeros for layer in last.layers) < 10
    assert sum(r.compensation is not None for r in reports) == len(reports) - 1
    assert pruned.family.n_blocks == len(reports)


def test_a_layer_that_no_group_fits_is_left_in_one_trace(tmp_path):
    model = icp_jax.load(write_llama(tmp_path / "m", intermediate_size=92))
    windows = np.random.default_rng(1).integers(3, 97, (3, 16)).astype(np.int32)
    made = Recipe("sparsegpt", batch=3, quantize=True, group=16)
    choice = Choice(exclude=("*.down_proj",))
    point = hyper(model.family, shapes(model), recipe=made, sparsity=0.5, choice=choice)
    order = block_orders(0, model.family.n_blocks, 1, 3)
    params, _ = jitted(model.family, model.params, windows, point, order, made)
    for t, block in params["blocks"].items():
        old = model.params["blocks"][t]["down_proj"]["kernel"]
        assert np.array_equal(block["down_proj"]["kernel"], old)
