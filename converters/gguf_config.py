"""The `config.json` of a model in GGUF, from its metadata and the shapes of its tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.gguf_metadata import Gguf
from converters.gguf_rope import rope_scaling
from converters.rules import ConversionError

# The architectures of llama.cpp, and what transformers calls them. Mistral is written as llama.
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ARCHITECTURES = ("llama", "qwen2", "qwen3")
DTYPE = np.dtype(np.float16)  # of the tensors, unless another is asked for
TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def short(value: float) -> float:
    """The shortest decimal that is this float32, as it was before it was rounded to float32."""
    return float(str(np.float32(value)))


def config_of(model: Gguf, dtype: np.dtype) -> dict[str, Any]:
    """The config of a model, with the dtype of its tensors. Raises ConversionError."""
    kind = _model_type(model)
    heads = _count(model, "attention.head_count")
    width = _count(model, "embedding_length")
    head_dim = int(model.own("attention.key_length", width // heads))
    config: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": _vocabulary(model),
        "hidden_size": width,
        "intermediate_size": _count(model, "feed_forward_length"),
        "num_hidden_layers": _count(model, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _count(model, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _count(model, "context_length"),
        "rms_norm_eps": short(_number(model, "attention.layer_norm_rms_epsilon")),
        "rope_theta": short(_number(model, "rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "use_cache": True,
        **_tokens(model),
        "dtype": str(dtype),
    }
    for key in ("attention.value_length", "rope.dimension_count"):
        if int(model.own(key, head_dim)) != head_dim:
            raise ConversionError(f"{model.first}: {key} is not the head size {head_dim}")
    if kind in ("llama", "qwen3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in model.tensors
    if kind == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in model.tensors
    if kind == "mistral":
        config["sliding_window"] = int(model.own("attention.sliding_window"))
    scaling = rope_scaling(model, config["rope_theta"], head_dim)
    return config if scaling is None else config | {"rope_scaling": scaling}


def _model_type(model: Gguf) -> str:
    found = model.architecture
    if found not in ARCHITECTURES:
        raise ConversionError(
            f"{model.first} has architecture {found[:60]!r}, which is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    if model.own("expert_count", 0):
        raise ConversionError(f"{model.first} is a mixture of experts, which is not supported")
    return "mistral" if found == "llama" and model.own("attention.sliding_window") else found


def _count(model: Gguf, key: str, default: int | None = None) -> int:
    """A number that must be the same in all blocks. Raises ConversionError."""
    value = model.own(key, default)
    values = set(value) if isinstance(value, list) else {value}
    if len(values) != 1 or not isinstance(one := values.pop(), int) or one < 1:
        raise ConversionError(f"{model.first}: {key} must be one number for all blocks")
    return one


def _number(model: Gguf, key: str, default: float | None = None) -> float:
    value = model.own(key, default)
    if not isinstance(value, int | float):
        raise ConversionError(f"{model.first} has no {model.architecture}.{key}")
    return value


def _vocabulary(model: Gguf) -> int:
    if "token_embd.weight" not in model.tensors:
        raise ConversionError(f"{model.first} has no tensor 'token_embd.weight'")
    return model.tensors["token_embd.weight"].shape[0]


def _tokens(model: Gguf) -> dict[str, int]:
    ids = {key: model.metadata.get(f"tokenizer.ggml.{old}_token_id") for key, old in TOKENS.items()}
    return {key: int(value) for key, value in ids.items() if value is not None}


def generation_config(model: Gguf) -> dict[str, Any]:
    """The tokens that begin, end and fill a text; a chat may end with a token of its own."""
    tokens: dict[str, Any] = {**_tokens(model)}
    turn = model.metadata.get("tokenizer.ggml.eot_token_id")
    if turn is not None and turn != tokens.get("eos_token_id"):
        tokens["eos_token_id"] = [x for x in (tokens.get("eos_token_id"), turn) if x is not None]
    return tokens
