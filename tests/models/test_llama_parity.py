"""Llama and its relatives against transformers' torch classes: 1e-5 a block, 1e-4 logits."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import LLAMA, rope

import icp_jax
from converters.llama import TABLES, with_defaults
from icp_jax import PruneConfig
from icp_jax.models import make_family
from icp_jax.models.rotary import Rope, inverse_frequencies

torch_too = pytest.mark.needs_torch
STORIES = Path(__file__).parents[2].parent / "shared" / "models" / "stories260K"
TINY_STORIES = STORIES.parents[1] / "data" / "text" / "tinystories-slice.txt"
LLAMA3 = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
LEGACY = {"factor": 2.0, "original_max_position_embeddings": 32}
YARN = {"rope_theta": 100.0, **LEGACY}
WIDE = {"head_dim": 24}  # enough frequencies for every branch of the scalings
SLIDING = {"use_sliding_window": True, "sliding_window": 7}
VARIANTS = {  # name: (changes to LLAMA, tokens)
    "grouped queries": ({}, 40),
    "one head of keys": ({"num_key_value_heads": 1}, 40),
    "all heads of keys": ({"num_key_value_heads": None}, 40),
    "longer than a query chunk": ({"max_position_embeddings": 600}, 530),
    "head_dim": ({"head_dim": 12}, 40),
    "attention_bias": ({"attention_bias": True}, 40),
    "mlp_bias": ({"mlp_bias": True}, 40),
    "tied": ({"tie_word_embeddings": True}, 40),
    "gelu": ({"hidden_act": "gelu", "rms_norm_eps": 1e-3}, 40),
    "theta": (rope("default", rope_theta=500.0), 40),
    "legacy theta": ({"rope_theta": 500.0}, 40),
    "linear": (rope("linear", factor=3.0), 64),
    "legacy linear": ({"rope_scaling": {"type": "linear", "factor": 3.0}}, 64),
    "dynamic within": (rope("dynamic", factor=2.0), 64),
    "dynamic beyond": (rope("dynamic", factor=2.0), 90),
    "llama3": (rope("llama3", **LLAMA3) | WIDE, 64),
    "legacy llama3": ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}} | WIDE, 64),
    "yarn": (rope("yarn", **YARN) | WIDE, 64),
    "legacy yarn": ({"rope_theta": 50.0, "rope_scaling": {"type": "yarn", **LEGACY}} | WIDE, 64),
    "yarn attention_factor": (rope("yarn", attention_factor=0.8, **YARN) | WIDE, 64),
    "yarn mscale": (rope("yarn", mscale=0.7, mscale_all_dim=0.4, **YARN) | WIDE, 64),
    "yarn betas": (rope("yarn", beta_fast=2.0, beta_slow=0.25, **YARN) | WIDE, 64),
    "yarn untruncated": (rope("yarn", truncate=False, beta_fast=2.0, **YARN) | WIDE, 64),
    "mistral": ({"model_type": "mistral", "sliding_window": 9}, 40),
    "mistral, chunks": (
        {"model_type": "mistral", "sliding_window": 30, "max_position_embeddings": 600},
        530,
    ),
    "mistral, no window": ({"model_type": "mistral", "sliding_window": None}, 40),
    "qwen2": ({"model_type": "qwen2"}, 40),
    "qwen2 sliding": ({"model_type": "qwen2", "max_window_layers": 1, **SLIDING}, 40),
    "qwen3": ({"model_type": "qwen3"}, 40),
    "qwen3 head_dim, bias": ({"model_type": "qwen3", "head_dim": 10, "attention_bias": True}, 40),
    "qwen3 layer_types": (
        {
            "model_type": "qwen3",
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            **SLIDING,
        },
        40,
    ),
}


@partial(jax.jit, static_argnums=0)
def ours(family, tree, tokens, inputs):
    """Every block's output on its own input, and the logits of the whole model."""
    x = family.embed.apply({"params": tree["embed"]}, tokens)
    outputs = []
    for t, before in enumerate(inputs):
        params = {"params": tree["blocks"][str(t)]}
        outputs.append(family.block_at(t).apply(params, before))
        x = family.block_at(t).apply(params, x)
    table = family.head_table(tree["embed"])
    return outputs, family.head.apply({"params": tree["head"]}, x, table)


@torch_too
@pytest.mark.parametrize("variant", VARIANTS)
def test_parity(variant):
    import torch_oracle as oracle

    changes, length = VARIANTS[variant]
    config = {**LLAMA, **changes}
    model = oracle.model_of(config)
    tree, family = oracle.tree_of(model), make_family(config)
    assert family == make_family(oracle.config_of(model))  # both spellings, all defaults
    tokens = np.random.default_rng(0).integers(0, 97, (2, length))
    blocks, want = oracle.run(model, tokens)
    assert len(blocks) == family.n_blocks == 3
    outputs, logits = ours(family, tree, tokens, [before for before, _ in blocks])
    block = max(np.abs(got - after).max() for got, (_, after) in zip(outputs, blocks, strict=True))
    whole = np.abs(logits - want).max()
    print(f"{variant}: {block:.1e} a block, {whole:.1e} logits")
    assert block <= 1e-5 and whole <= 1e-4, (block, whole)


@torch_too
@pytest.mark.parametrize("variant", [v for v, (c, _) in VARIANTS.items() if "rope" in str(c)])
def test_frequencies_at_real_sizes(variant):
    """To the last bit but one: at position 2048 that is 1e-4 of an angle."""
    from torch_oracle import torch
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = {**LLAMA, **VARIANTS[variant][0], "head_dim": 128}
    theirs = LlamaRotaryEmbedding(AutoConfig.for_model(**config))
    theirs(torch.zeros(1, 2048, 1), torch.arange(2048)[None])  # dynamic ones adapt
    frequencies = inverse_frequencies(Rope.from_hf(config, 128), 2048)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, theirs.inv_freq.numpy(), rtol=1.2e-7)


@torch_too
def test_taps_are_the_inputs_of_the_linears():
    import torch_oracle as oracle

    model = oracle.model_of({**LLAMA, "head_dim": 12})
    tree, family = oracle.tree_of(model), make_family({**LLAMA, "head_dim": 12})
    layer, seen = model.model.layers[1], {}
    inside = {**dict(layer.self_attn.named_modules()), **dict(layer.mlp.named_modules())}
    for spec in family.linears:
        inside[spec.name].register_forward_hook(
            lambda m, args, out, name=spec.name: seen.update({name: args[0].numpy()})
        )
    (_, (x, _), _), _ = oracle.run(model, np.arange(30)[None])
    params = {"params": tree["blocks"]["1"]}
    _, found = family.block.apply(params, x, mutable=["taps"])
    assert {k: len(v) for k, v in found["taps"].items()} == {s.tap: 1 for s in family.linears}
    for spec in family.linears:
        np.testing.assert_allclose(found["taps"][spec.tap][0], seen[spec.name], atol=1e-5, rtol=0)


@torch_too
@pytest.mark.parametrize("kind", TABLES)
def test_defaults_are_those_of_transformers(kind):
    pytest.importorskip("torch")
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(kind)
    sizes = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
    bare = {"model_type": kind, **{name: getattr(theirs, name) for name in sizes.split()}}
    assert make_family(bare) == make_family(json.loads(theirs.to_json_string()))
    ours = with_defaults(bare)
    for name in ours.keys() - {"attention_bias", "mlp_bias", "sliding_window", "head_dim"}:
        assert ours[name] == getattr(theirs, name), name


@torch_too
@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no {STORIES}")
@pytest.mark.slow
def test_a_trained_model():
    import torch_oracle as oracle
    from transformers import AutoModelForCausalLM

    tokens = np.random.default_rng(0).integers(0, 512, (2, 300))
    want = oracle.logits_of(AutoModelForCausalLM.from_pretrained(STORIES).eval(), tokens)
    got = icp_jax.load(STORIES).logits(tokens)
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


@torch_too
@pytest.mark.skipif(not TINY_STORIES.exists(), reason=f"{TINY_STORIES} is not there")
@pytest.mark.slow
def test_stories260k_has_the_perplexity_that_torch_finds():
    import bench_stories
    import torch
    from transformers import AutoModelForCausalLM

    pieces, scores = bench_stories.read_vocabulary(STORIES / "tok512.bin")
    stories = [s.strip() for s in TINY_STORIES.read_text().split("\n\n") if s.strip()][:8]
    ids = [i for story in stories for i in bench_stories.encode(story, pieces, scores)]
    windows = np.array(ids[: len(ids) // 256 * 256], np.int32).reshape(-1, 256)
    model = AutoModelForCausalLM.from_pretrained(STORIES).eval()
    with torch.no_grad():
        ids = torch.from_numpy(windows).long()
        loss = model(ids, labels=ids).loss.item()
    found = icp_jax.evaluate(icp_jax.load(STORIES), windows)
    assert found.perplexity == pytest.approx(np.exp(loss), rel=1e-4)
    assert 5 < found.perplexity < 20  # a trained model's


@torch_too
@pytest.mark.parametrize("pattern", [None, "2:4"])
@pytest.mark.slow
def test_wanda_walks_a_model_as_its_authors_do(pattern, tmp_path):
    """In torch: hooks for the norms of the inputs, rows compared within themselves, and the next
    layer sees what the pruned ones give."""
    import torch_oracle as oracle
    from torch_oracle import torch

    tokens = np.random.default_rng(0).integers(0, 97, (6, 40)).astype(np.int32)
    model = oracle.model_of(LLAMA)
    model.save_pretrained(tmp_path)
    for layer in model.model.layers:
        linears = {n: m for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
        squares = dict.fromkeys(linears, 0.0)

        def hook(module, args, out, *, of, sums=squares):
            sums[of] = sums[of] + args[0].double().square().sum((0, 1))

        hooks = [m.register_forward_hook(partial(hook, of=n)) for n, m in linears.items()]
        oracle.run(model, tokens)
        for handle in hooks:
            handle.remove()
        for name, linear in linears.items():
            scores = linear.weight.detach().abs() * squares[name].sqrt()
            scores = scores.unflatten(1, (-1, 4)) if pattern else scores
            gone = scores.argsort(-1)[..., : scores.shape[-1] // 2]
            masked = torch.ones_like(scores).scatter_(-1, gone, 0.0)
            with torch.no_grad():
                linear.weight *= masked.reshape(linear.weight.shape)
    sparsity = None if pattern else 0.5
    config = PruneConfig(method="wanda", pattern=pattern or "unstructured", sparsity=sparsity)
    ours = icp_jax.prune(icp_jax.load(tmp_path), tokens, config)[0].params
    theirs = oracle.tree_of(model)
    for t in range(LLAMA["num_hidden_layers"]):
        for spec in make_family(LLAMA).linears:
            kernels = (params["blocks"][str(t)][spec.name]["kernel"] for params in (ours, theirs))
            np.testing.assert_array_equal(*kernels, err_msg=f"{spec.name} of block {t}")
