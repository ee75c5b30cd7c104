"""The statistics pass: what it counts of real samples, and what it never computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LLAMA, OPT
from vision.small_sam import CONFIG as SAM

from icp_jax.core import stats
from icp_jax.core.passes import Apply, no_statistics
from icp_jax.models import make_family
from icp_jax.streaming import passes

CASES = {
    "opt": (OPT, (24,)),
    "opt post-norm": ({**OPT, "do_layer_norm_before": False}, (24,)),
    "llama": (LLAMA, (24,)),
    "sam windowed": (SAM, (8, 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_energies_are_those_of_the_moments(case):
    """A bias is no part of them, what a norm's affine is folded into is; padding counts nothing."""
    config, positions = CASES[case]
    family = make_family(config)
    apply = Apply(family.block_at(0), "float32")
    x = jax.random.normal(jax.random.key(0), (3, *positions, family.hidden_size))
    params = apply.module.init(jax.random.key(1), x)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [p + 0.3 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, noisy)
    shapes = {s.name: params[s.name]["kernel"].shape for s in family.linears}

    seen = no_statistics(family, shapes, 1)  # so few that the last linear's is counted too
    for batch, valid in ((x, 3), (x.at[2:].set(7.0), 2)):
        seen = passes.collect(apply, params, batch, seen, np.int32(valid))
    assert set(seen.energies) == {s.name for s in family.linears}
    found = {tap: stats.moments(sums) for tap, sums in seen.sums.items()}
    for spec in family.linears:
        moments = found[spec.tap]
        want = stats.output_energy(params[spec.name]["kernel"], moments)
        assert int(moments.tokens) == 5 * np.prod(positions)
        np.testing.assert_allclose(seen.energies[spec.name] / int(moments.tokens), want, rtol=1e-5)
        kernel = params[spec.name]["kernel"]
        counted = stats.energy(kernel, moments, seen.energies[spec.name])
        np.testing.assert_allclose(counted, want, rtol=1e-5)
        with_it = stats.output_error(kernel, 0.9 * kernel, moments)
        np.testing.assert_allclose(with_it, 0.01, rtol=1e-4)


def test_moments_of_half_precision_are_summed_in_float32():
    x = jax.random.normal(jax.random.key(0), (300, 40)).astype("bfloat16")
    want = np.asarray(x, np.float64).T @ np.asarray(x, np.float64) / 300
    np.testing.assert_allclose(stats.from_inputs(x).second, want, rtol=1e-5, atol=1e-6)


def test_the_last_linear_is_multiplied_out_for_few_tokens_only():
    family = make_family(OPT)
    apply = Apply(family.block, "float32")
    x = jnp.zeros((2, 24, family.hidden_size))
    params = apply.module.init(jax.random.key(1), x)["params"]
    shapes = {s.name: params[s.name]["kernel"].shape for s in family.linears}
    seen = no_statistics(family, shapes, 65)
    lowered = passes.collect.lower(apply, params, x, seen, np.int32(2))
    whole = no_statistics(family, shapes, 64)
    assert set(whole.energies) == {*seen.energies, "fc2"}
    more = passes.collect.lower(apply, params, x, whole, np.int32(2))
    flops = [low.compile().cost_analysis()["flops"] for low in (more, lowered)]
    assert flops[0] - flops[1] > 2 * 48 * 128 * 32 * 0.9
