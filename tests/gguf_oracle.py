"""GGUF files as llama.cpp's converter writes them, from the weights of a Hugging Face model."""

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LETTERS = [chr(code) for code in range(ord("!"), ord("~") + 1)]  # byte-level text of ASCII
TOKENS = ["<unk>", "<s>", "</s>", *LETTERS]  # 97


def ggml_name(name):
    stem, suffix = name.rsplit(".", 1)
    if stem in NAMES:
        return f"{NAMES[stem]}.{suffix}"
    _, _, block, inner = stem.split(".", 3)
    return f"blk.{block}.{NAMES[inner]}.{suffix}"


def permuted(weight, heads):
    """The rows of each head's two halves, interleaved."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def tensors_of(config, state):
    """(ggml name, values) of a state dict."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    for name, weight in state.items():
        if config["model_type"] in ("llama", "mistral") and ".q_proj." in name:
            weight = permuted(weight, heads)
        if config["model_type"] in ("llama", "mistral") and ".k_proj." in name:
            weight = permuted(weight, kv_heads)
        yield ggml_name(name), np.ascontiguousarray(weight, np.float32)


def add_config(writer, config):
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    if "rope_theta" in config:
        writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])


def add_tokenizer(writer, tokens=TOKENS, merges=(), pre="gpt-2", special=(0, 1, 2), user=()):
    """A byte-level tokenizer: special and user's are the ids of added tokens."""
    types = [TokenType.NORMAL] * len(tokens)
    for i in (*special, *user):
        types[i] = TokenType.CONTROL if i in special else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(list(merges))


def write_gguf(path, config, state, kind="F32", add=(), tokenizer=add_tokenizer, **split):
    """One file, or parts of it.

    kind: of the matrices; vectors are F32. add: called with the writer. split: GGUFWriter's.
    """
    arch = "llama" if config["model_type"] == "mistral" else config["model_type"]
    writer = GGUFWriter(path, arch, **split)
    add_config(writer, config)
    tokenizer(writer)
    for more in add:
        more(writer)
    for name, values in tensors_of(config, state):
        stored = GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(name, quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_state(config, seed=0):
    """Random weights of a model by torch name."""
    from converters import table_for

    rng = np.random.default_rng(seed)
    tied = config.get("tie_word_embeddings", False)
    return {
        p.name: rng.normal(size=p.shape).astype(np.float32) * 0.1 + ("norm.weight" in p.name)
        for p in table_for(config["model_type"]).place(config)
        if not (tied and p.name == "lm_head.weight")
    }
