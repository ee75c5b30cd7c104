"""Generated tokens: those of transformers' greedy search, and draws with the right frequencies."""

import dataclasses
import logging
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LLAMA, rope

import icp_jax
from icp_jax.errors import InputError
from icp_jax.generation import steps
from icp_jax.generation.generate import padded
from icp_jax.generation.sampling import Sampling, choose, row_keys
from icp_jax.model import Model
from icp_jax.models import make_family
from icp_jax.models.cache import CACHE, of_block

STORIES = Path(__file__).parents[2].parent / "shared" / "models" / "stories260K"
BASE = {**LLAMA, "num_hidden_layers": 2, "max_position_embeddings": 128}
SCALED = {"factor": 4.0, "original_max_position_embeddings": 40}
OPT = {
    "model_type": "opt", "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "ffn_dim": 80, "max_position_embeddings": 128,
    "word_embed_proj_dim": 48,
}  # fmt: skip
FAMILIES = {
    "opt": OPT | {"tie_word_embeddings": False},
    "opt, post-norm": OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 24},
    "llama": BASE,
    "llama3 scaling": BASE
    | rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, **SCALED)
    | {"head_dim": 24},
    "mistral": BASE | {"model_type": "mistral", "sliding_window": 9},
    "qwen2": BASE
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7}
    | {"max_window_layers": 1},
    "qwen3": BASE | {"model_type": "qwen3", "head_dim": 10} | rope("yarn", **SCALED),
}


class Tree:
    """A model of a config and a param tree, as `generate` takes it."""

    def __init__(self, config, params):
        self.config, self.params, self.family = config, params, make_family(config)

    def embed(self):
        return self.params["embed"]

    def block(self, t):
        return self.params["blocks"][str(t)]

    def head(self):
        return self.params.get("head", {})


@cache
def random_params(name):
    family = make_family(FAMILIES[name])
    x = jnp.zeros((1, 4, family.hidden_size))
    blocks = {str(t): family.block_at(t) for t in range(family.n_blocks)}
    keys = iter(jax.random.split(jax.random.key(0), 99))
    params = {
        "embed": family.embed.init(next(keys), jnp.zeros((1, 4), jnp.int32))["params"],
        "blocks": {
            name: jax.jit(block.init)(next(keys), x)["params"] for name, block in blocks.items()
        },
        "head": family.head.init(next(keys), x, None)["params"],
    }
    return jax.tree.map(lambda p: 3 * p, params)


def random_tree(name="llama"):
    """Random params, large enough for logits that differ."""
    return Tree({**FAMILIES[name], "tie_word_embeddings": False}, random_params(name))


def theirs(model, row, new):
    """The tokens of transformers' greedy search after one prompt."""
    import torch

    ids = torch.from_numpy(np.asarray(row, np.int64))[None]
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return out[0, len(row) :].numpy()


def prompts(vocabulary, *lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(3, vocabulary, length) for length in lengths]


@pytest.mark.needs_torch
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(name):
    import torch_oracle as oracle

    model = oracle.model_of(FAMILIES[name])
    ours = Tree(oracle.config_of(model), oracle.tree_of(model))
    rows = prompts(97, 21, 5)  # both are padded, one much
    got = icp_jax.generate(ours, rows, max_new_tokens=64)
    assert got.shape == (2, 64) and got.dtype == np.int32
    assert len(np.unique(got)) > 3
    for row, found in zip(rows, got, strict=True):
        np.testing.assert_array_equal(found, theirs(model, row, 64))


@pytest.mark.needs_torch
@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no {STORIES}")
def test_greedy_tokens_of_a_trained_model():
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(STORIES).eval()
    rows = [np.array([1]), *prompts(512, 30)]
    got = icp_jax.generate(icp_jax.load(STORIES), rows)
    for row, found in zip(rows, got, strict=True):
        np.testing.assert_array_equal(found, theirs(model, row, 64))


def test_the_cache_gives_what_whole_sequences_give():
    """The likeliest token after every one, with rows of unequal length and a window."""
    tree = random_tree("mistral")
    (row,) = prompts(97, 30)
    model = Model(tree.config, tree.params, None, None)
    whole = jax.jit(model.logits)(row[None].astype(np.int32))
    got = icp_jax.generate(tree, [row[:n] for n in range(1, 31)], max_new_tokens=1)
    np.testing.assert_array_equal(got[:, 0], np.argmax(whole[0], axis=-1))


def test_an_accelerators_one_program_gives_the_same(monkeypatch):
    tree, rows = random_tree("mistral"), prompts(97, 12, 5)
    blocks = icp_jax.generate(tree, rows, max_new_tokens=12)
    monkeypatch.setattr("icp_jax.generation.generate.advance", steps._whole)
    np.testing.assert_array_equal(blocks, icp_jax.generate(tree, rows, max_new_tokens=12))


def test_a_block_without_a_cache_keeps_none():
    block = make_family(BASE).block
    x = jax.random.normal(jax.random.key(0), (2, 5, 48))
    params = block.init(jax.random.key(1), x)["params"]
    assert set(block.init(jax.random.key(1), x)) <= {"params", "taps", "energies"}
    slots = {"start": jnp.int32(0), "first": jnp.zeros(2, jnp.int32)}
    y, found = block.apply({"params": params, CACHE: slots}, x, mutable=[CACHE])
    np.testing.assert_allclose(y, block.apply({"params": params}, x), atol=1e-6)
    assert of_block(found)["keys"].shape == (2, 2, 5, 8)


def test_lengths_that_pad_alike_compile_once(caplog):
    tree = random_tree()

    def compiled(*rows, new=8, **settings):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            icp_jax.generate(tree, list(rows), max_new_tokens=new, **settings)
        return [r.getMessage() for r in caplog.records if "Finished XLA" in r.getMessage()]

    row = prompts(97, 40)[0]
    first = compiled(row[:20])
    assert sum("block_step" in line for line in first) == 2  # the prompt, and one token
    assert compiled(row[:31], new=20) == compiled(row[:17]) == []
    assert sum("block_step" in line for line in compiled(row[:33])) == 2
    warm = compiled(row[:20], temperature=0.7)
    assert all("block_step" not in line for line in warm)
    assert compiled(row[:20], temperature=0.9) == []


def test_padded_lengths_are_few():
    assert [padded(n) for n in (1, 16, 17, 100, 256, 257, 2000)] == [
        16, 16, 32, 128, 256, 512, 2048,
    ]  # fmt: skip


def test_a_seed_repeats_and_another_differs():
    tree, rows = random_tree(), prompts(97, 6, 9)
    drawn = [
        icp_jax.generate(tree, rows, jax.random.key(seed), temperature=1.0, max_new_tokens=24)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).mean() > 0.5
    alone = icp_jax.generate(tree, rows[:1], temperature=1.0, max_new_tokens=24)
    np.testing.assert_array_equal(alone[0], drawn[0][0])  # the other row changes nothing


def test_a_temperature_near_zero_is_greedy():
    tree, rows = random_tree(), prompts(97, 6, 9)
    greedy = icp_jax.generate(tree, rows, max_new_tokens=24)
    cold = icp_jax.generate(tree, rows, temperature=1e-6, max_new_tokens=24)
    np.testing.assert_array_equal(greedy, cold)
    narrow = icp_jax.generate(tree, rows, temperature=1.0, top_p=1e-6, max_new_tokens=24)
    np.testing.assert_array_equal(greedy, narrow)


def draws(kind, temperature, top_p, probabilities, count=20_000):
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities)), (count, len(probabilities)))
    keys = row_keys(jax.random.key(3), jnp.arange(count, dtype=jnp.int32))
    numbers = jnp.float32(temperature), jnp.float32(top_p)
    return np.bincount(choose(kind, logits, keys, jnp.int32(0), *numbers), minlength=5) / count


def test_draws_have_the_models_frequencies():
    p = np.array([0.05, 0.4, 0.25, 0.1, 0.2])
    sigma = np.sqrt(p * (1 - p) / 20_000)
    assert (abs(draws("all", 1.0, 1.0, p) - p) < 4 * sigma).all()
    warm = p**0.5 / (p**0.5).sum()
    assert (abs(draws("all", 2.0, 1.0, p) - warm) < 4 * np.sqrt(warm / 20_000)).all()


@pytest.mark.parametrize(
    "top_p, kept", [(0.3, [1]), (0.5, [1, 2]), (0.9, [1, 2, 3, 4]), (1.0, [0, 1, 2, 3, 4])]
)
def test_top_p_keeps_the_likeliest_and_their_proportions(top_p, kept):
    p = np.array([0.05, 0.4, 0.25, 0.1, 0.2])
    want = np.where(np.isin(np.arange(5), kept), p, 0) / p[kept].sum()
    found = draws("likeliest", 1.0, top_p, p)
    assert set(np.flatnonzero(found)) == set(kept)
    assert (abs(found - want) < 4 * np.sqrt(want / 20_000) + 1e-9).all()


def test_a_row_ends_where_it_meets_an_end():
    tree, rows = random_tree(), prompts(97, 6, 9)
    free = icp_jax.generate(tree, rows, max_new_tokens=16)
    end = int(free[0, 3])
    got = icp_jax.generate(tree, rows, max_new_tokens=16, eos=end)
    stop = int(np.argmax(free[0] == end))
    np.testing.assert_array_equal(got[0, : stop + 1], free[0, : stop + 1])
    assert (got[0, stop:] == end).all()
    both = icp_jax.generate(tree, rows[:1], max_new_tokens=16, eos=[end, 96])
    assert both.shape == (1, stop + 1)


BAD = {
    "at least one token id": ([[]], {}),
    r"in \[0, 97\)": ([[3, 97]], {}),
    "max_new_tokens must be at least 1": ([[3]], {"max_new_tokens": 0}),
    "exceed the model's context of 128: .* at most 28": ([[3] * 100], {"max_new_tokens": 29}),
    "temperature must be at least 0": ([[3]], {"temperature": -0.1}),
    "finite, got nan": ([[3]], {"temperature": float("nan")}),
    r"top_p must be in \(0, 1\], got 0.0": ([[3]], {"top_p": 0.0}),
    r"got 1.5": ([[3]], {"top_p": 1.5}),
}


@pytest.mark.parametrize("said", BAD)
def test_bad_input(said):
    rows, settings = BAD[said]
    with pytest.raises(InputError, match=said):
        icp_jax.generate(random_tree(), rows, **settings)


def test_a_vision_model_writes_no_text():
    tree = random_tree()
    tree.family = dataclasses.replace(tree.family, kind="vision")
    with pytest.raises(InputError, match="only a language model writes text"):
        icp_jax.generate(tree, [[1]])


def test_kinds_of_sampling():
    kinds = [Sampling(0.0, 0.5).kind, Sampling(1.0).kind, Sampling(0.5, 0.9).kind]
    assert kinds == ["greedy", "all", "likeliest"]
