"""OPT, 125M to 66B: pre- and post-norm, with optional projections, biases and affine norms."""

from converters.rules import Rule, Table


def _bias(config):
    return config.get("enable_bias", True)


def _affine(config):
    return config.get("layer_norm_elementwise_affine", True)


def embedding_width(config):
    """The width of the token embedding: word_embed_proj_dim, or hidden_size if unset or null."""
    width = config.get("word_embed_proj_dim")
    return config["hidden_size"] if width is None else width


def _projected(config):
    return embedding_width(config) != config["hidden_size"]


def _last_norm(config):
    pre = config.get("do_layer_norm_before", True)
    return pre and not config.get("_remove_final_layer_norm", False) and _affine(config)


def _linear(torch: str, tree: str, out: str, inp: str) -> tuple[Rule, Rule]:
    at = "{p}decoder.layers.{i}." + torch
    return (
        Rule(f"{at}.weight", f"blocks/{{i}}/{tree}/kernel", (out, inp), transpose=True),
        Rule(f"{at}.bias", f"blocks/{{i}}/{tree}/bias", (out,), when=_bias),
    )


def _norm(torch: str) -> tuple[Rule, Rule]:
    at = "{p}decoder.layers.{i}." + torch
    return (
        Rule(f"{at}.weight", f"blocks/{{i}}/{torch}/scale", ("D",), when=_affine),
        Rule(f"{at}.bias", f"blocks/{{i}}/{torch}/bias", ("D",), when=_affine),
    )


TABLE = Table(
    family="opt",
    prefixes=("model.", ""),
    rules=(
        Rule("{p}decoder.embed_tokens.weight", "embed/tokens/embedding", ("V", "E")),
        Rule("{p}decoder.embed_positions.weight", "embed/positions/embedding", ("P", "D")),
        Rule(
            "{p}decoder.project_in.weight",
            "embed/project_in/kernel",
            ("D", "E"),
            transpose=True,
            when=_projected,
        ),
        *_norm("self_attn_layer_norm"),
        *_linear("self_attn.q_proj", "q_proj", "D", "D"),
        *_linear("self_attn.k_proj", "k_proj", "D", "D"),
        *_linear("self_attn.v_proj", "v_proj", "D", "D"),
        *_linear("self_attn.out_proj", "out_proj", "D", "D"),
        *_norm("final_layer_norm"),
        *_linear("fc1", "fc1", "F", "D"),
        *_linear("fc2", "fc2", "D", "F"),
        Rule("{p}decoder.final_layer_norm.weight", "head/norm/scale", ("D",), when=_last_norm),
        Rule("{p}decoder.final_layer_norm.bias", "head/norm/bias", ("D",), when=_last_norm),
        Rule(
            "{p}decoder.project_out.weight",
            "head/project_out/kernel",
            ("E", "D"),
            transpose=True,
            when=_projected,
        ),
        Rule("lm_head.weight", "head/lm_head/kernel", ("V", "E"), transpose=True),
    ),
    dims=lambda c: {
        "V": c["vocab_size"],
        "D": c["hidden_size"],
        "E": embedding_width(c),
        "P": c["max_position_embeddings"] + 2,
        "F": c["ffn_dim"],
    },
    n_blocks=lambda c: c["num_hidden_layers"],
)
