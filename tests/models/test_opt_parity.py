"""OPT against transformers' torch classes, float32, random weights: 1e-5 a block, 1e-4 logits."""

import jax
import numpy as np
import pytest

from converters import table_for
from converters.rules import insert
from icp_jax.models import make_family

pytestmark = pytest.mark.needs_torch
VARIANTS = {
    "pre-norm": {},
    "post-norm": {"do_layer_norm_before": False},
    "projections": {"word_embed_proj_dim": 24},
    "350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 24},
    "biasless": {"enable_bias": False},
    "no affine norms": {"layer_norm_elementwise_affine": False},
    "gelu": {"activation_function": "gelu"},
    "untied": {"tie_word_embeddings": False},
    "no final norm": {"_remove_final_layer_norm": True},
}


def both(changes):
    torch = pytest.importorskip("torch")
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, ffn_dim=80,
        max_position_embeddings=300, dropout=0.0, **{"word_embed_proj_dim": 48, **changes},
    )  # fmt: skip
    model = OPTForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * (0.2 if p.ndim > 1 else 0.3) + float("norm.w" in name))
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    raw = {**config.to_dict(), "_remove_final_layer_norm": config._remove_final_layer_norm}
    tree = {}
    for placed in table_for("opt").place(raw, list(state)):
        insert(tree, placed.path, placed.to_tree(state[placed.name]))
    tree.setdefault("head", {})
    tree["blocks"] = {str(t): tree["blocks"].get(str(t), {}) for t in range(3)}
    return torch, model, make_family(raw), tree


@pytest.mark.parametrize("variant", VARIANTS)
def test_parity(variant):
    torch, model, family, tree = both(VARIANTS[variant])
    tokens = np.random.default_rng(0).integers(0, 97, (2, 290))
    with torch.no_grad():
        out = model(torch.from_numpy(tokens), output_hidden_states=True)
    x = np.asarray(family.embed.apply({"params": tree["embed"]}, tokens))
    np.testing.assert_allclose(x, out.hidden_states[0].numpy(), atol=1e-5, rtol=0)
    layers = model.model.decoder.layers
    for t in range(3):
        want = _layer(torch, layers[t], x)
        x = np.asarray(family.block_at(t).apply({"params": tree["blocks"][str(t)]}, x))
        np.testing.assert_allclose(x, want, atol=1e-5, rtol=0)
    table = family.head_table(tree["embed"])
    logits = family.head.apply({"params": tree["head"]}, x, table)
    np.testing.assert_allclose(logits, out.logits.numpy(), atol=1e-4, rtol=0)


def _layer(torch, layer, x):
    length = x.shape[1]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        out = layer(torch.from_numpy(np.array(x)), attention_mask=mask)
    return (out[0] if isinstance(out, tuple) else out).numpy()


def test_taps_are_the_inputs_of_the_linears():
    torch, model, family, tree = both({})
    x = np.random.default_rng(0).normal(size=(1, 20, 48)).astype(np.float32)
    seen = {}
    layer = model.model.decoder.layers[0]
    for name, module in (("q_proj", layer.self_attn.q_proj), ("fc2", layer.fc2)):
        module.register_forward_hook(lambda m, i, o, name=name: seen.update({name: i[0]}))
    _layer(torch, layer, x)
    _, found = jax.jit(lambda p, x: family.block.apply({"params": p}, x, mutable=["taps"]))(
        tree["blocks"]["0"], x
    )
    for name, tap in (("q_proj", "qkv_in"), ("fc2", "fc2_in")):
        ours = np.asarray(found["taps"][tap][0]).reshape(-1)
        np.testing.assert_allclose(ours, seen[name].detach().numpy().reshape(-1), atol=1e-5)
