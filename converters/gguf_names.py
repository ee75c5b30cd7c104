"""The tensor names of GGUF files, and those of Hugging Face checkpoints for them."""

from __future__ import annotations

import re

from converters.rules import ConversionError

OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FREQUENCIES = "rope_freqs.weight"  # of the rotary scaling: in the config, not in the checkpoint
IN_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def torch_name(name: str) -> str | None:
    """The torch name of a tensor; None for one without. Raises ConversionError if unknown."""
    if name == FREQUENCIES:
        return None
    if name in OUTER:
        return OUTER[name]
    found = IN_BLOCK.fullmatch(name)
    if found is None or found[2] not in INNER:
        raise ConversionError(
            f"unknown tensor {name!r}: this is not a plain Llama, Mistral, Qwen2 or Qwen3"
        )
    return f"model.layers.{found[1]}.{INNER[found[2]]}.{found[3]}"


def role(name: str) -> str:
    """What a tensor of a block is, such as `attn_q`; empty for others."""
    found = IN_BLOCK.fullmatch(name)
    return "" if found is None else found[2]
