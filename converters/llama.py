"""Llama, Mistral, Qwen2 and Qwen3: one set of rules; only biases and norms differ."""

from collections.abc import Mapping
from typing import Any

from converters.rules import Rule, Table

# Defaults of transformers for fields missing from `config.json`.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "qwen3": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
}
HAVE_ATTENTION_BIAS = ("llama", "qwen3")  # the types with an `attention_bias` setting


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the missing fields of a config, including num_key_value_heads and head_dim."""
    full = {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        **DEFAULTS[config["model_type"]],
        **config,
    }
    if full.get("num_key_value_heads") is None:
        full["num_key_value_heads"] = full["num_attention_heads"]
    if full.get("head_dim") is None:
        full["head_dim"] = full["hidden_size"] // full["num_attention_heads"]
    return full


def has_qkv_bias(config: Mapping[str, Any]) -> bool:
    """Whether q, k and v have biases: always in Qwen2, never in Mistral."""
    kind = config["model_type"]
    return kind == "qwen2" or (kind in HAVE_ATTENTION_BIAS and bool(config.get("attention_bias")))


def has_o_bias(config: Mapping[str, Any]) -> bool:
    """Whether the attention's output projection has a bias."""
    return config["model_type"] in HAVE_ATTENTION_BIAS and bool(config.get("attention_bias"))


def has_mlp_bias(config: Mapping[str, Any]) -> bool:
    """Whether gate, up and down have biases: only in Llama, by `mlp_bias`."""
    return config["model_type"] == "llama" and bool(config.get("mlp_bias"))


def has_qk_norm(config: Mapping[str, Any]) -> bool:
    """Whether each head of q and k is normalised, as in Qwen3."""
    return config["model_type"] == "qwen3"


def _linear(torch: str, out: str, inp: str, bias) -> tuple[Rule, Rule]:
    at, tree = "{p}layers.{i}." + torch, "blocks/{i}/" + torch.split(".")[1]
    return (
        Rule(f"{at}.weight", f"{tree}/kernel", (out, inp), transpose=True),
        Rule(f"{at}.bias", f"{tree}/bias", (out,), when=bias),
    )


def _norm(torch: str, size: str, when=lambda config: True) -> Rule:
    at, tree = "{p}layers.{i}." + torch, "blocks/{i}/" + torch.split(".")[-1]
    return Rule(f"{at}.weight", f"{tree}/scale", (size,), when=when)


def _dims(config: Mapping[str, Any]) -> dict[str, int]:
    c = with_defaults(config)
    return {
        "V": c["vocab_size"],
        "D": c["hidden_size"],
        "F": c["intermediate_size"],
        "H": c["head_dim"],
        "Q": c["num_attention_heads"] * c["head_dim"],
        "K": c["num_key_value_heads"] * c["head_dim"],
    }


def _table(family: str) -> Table:
    return Table(
        family=family,
        prefixes=("model.", ""),
        rules=(
            Rule("{p}embed_tokens.weight", "embed/tokens/embedding", ("V", "D")),
            _norm("input_layernorm", "D"),
            *_linear("self_attn.q_proj", "Q", "D", has_qkv_bias),
            *_linear("self_attn.k_proj", "K", "D", has_qkv_bias),
            *_linear("self_attn.v_proj", "K", "D", has_qkv_bias),
            _norm("self_attn.q_norm", "H", has_qk_norm),
            _norm("self_attn.k_norm", "H", has_qk_norm),
            *_linear("self_attn.o_proj", "D", "Q", has_o_bias),
            _norm("post_attention_layernorm", "D"),
            *_linear("mlp.gate_proj", "F", "D", has_mlp_bias),
            *_linear("mlp.up_proj", "F", "D", has_mlp_bias),
            *_linear("mlp.down_proj", "D", "F", has_mlp_bias),
            Rule("{p}norm.weight", "head/norm/scale", ("D",)),
            Rule("lm_head.weight", "head/lm_head/kernel", ("V", "D"), transpose=True),
        ),
        dims=_dims,
        n_blocks=lambda c: c["num_hidden_layers"],
        tied_default=False,
        ignored=("{p}layers.{i}.self_attn.rotary_emb.inv_freq",),  # buffers of old checkpoints
    )


TABLES = {family: _table(family) for family in DEFAULTS}
