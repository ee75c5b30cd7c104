"""What all sides of `bench_prune.py` are given: shapes, weights, tokens, budgets, and the FLOPs.

A job is a dict of settings, as it goes to a side's process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np

from converters.rules import lookup


class Shape(NamedTuple):
    """The sizes of a model's blocks."""

    family: str  # a model_type
    hidden: int
    heads: int
    ffn: int


SHAPES = {
    "tiny": Shape("opt", 64, 4, 256),
    "tiny-llama": Shape("llama", 64, 4, 176),
    "opt-125m": Shape("opt", 768, 12, 3072),
    "opt-1.3b": Shape("opt", 2048, 32, 8192),
    "opt-6.7b": Shape("opt", 4096, 32, 16384),
    "llama-7b": Shape("llama", 4096, 32, 11008),
}
NORMS = {
    "opt": ("self_attn_layer_norm", "final_layer_norm"),
    "llama": ("input_layernorm", "post_attention_layernorm"),
}


def linears(job) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) by name; the last one writes to the residual stream."""
    family, d, _, f = SHAPES[job["shape"]]
    if family == "opt":
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        return {**dict.fromkeys(names, (d, d)), "fc1": (d, f), "fc2": (f, d)}
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    wide = dict.fromkeys(("gate_proj", "up_proj"), (d, f))
    return {**dict.fromkeys(names, (d, d)), **wide, "down_proj": (f, d)}


def hf_config(job) -> dict[str, Any]:
    family, d, heads, f = SHAPES[job["shape"]]
    return {
        "model_type": family,
        "vocab_size": job["vocab"],
        "hidden_size": d,
        "num_attention_heads": heads,
        "ffn_dim" if family == "opt" else "intermediate_size": f,
        "num_hidden_layers": job["blocks"],
        "max_position_embeddings": job["seq_len"],
        "tie_word_embeddings": True,
    }


def weights(job):
    """(embedding, blocks) as trees of arrays, `[in, out]`, of variances that keep the scale."""
    family, d, *_ = SHAPES[job["shape"]]
    rng, affine = np.random.default_rng(job["seed"]), family == "opt"

    def normal(*shape, scale=1.0):
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    blocks = []
    for _ in range(job["blocks"]):
        block = {}
        for name, (i, o) in linears(job).items():
            bias = {"bias": normal(o, scale=0.02)} if affine else {}
            block[name] = {"kernel": normal(i, o, scale=i**-0.5), **bias}
        for name in NORMS[family]:
            bias = {"bias": normal(d, scale=0.02)} if affine else {}
            block[name] = {"scale": np.exp(normal(d, scale=0.3)), **bias}
        blocks.append(block)
    embed = {"tokens": {"embedding": normal(job["vocab"], d)}}
    if affine:
        embed["positions"] = {"embedding": normal(job["seq_len"] + 2, d, scale=0.3)}
    return embed, blocks


def checkpoint(job, folder: Path) -> None:
    """The weights as a Hugging Face folder, with a last norm that nothing here uses."""
    (embed, blocks), d = weights(job), SHAPES[job["shape"]].hidden
    norm = {"scale": np.ones(d, np.float32), "bias": np.zeros(d, np.float32)}
    blocks = {str(t): block for t, block in enumerate(blocks)}
    tree = {"embed": embed, "blocks": blocks, "head": {"norm": norm}}
    common.write_checkpoint(
        folder, hf_config(job), "float32", lambda p: p.to_torch(lookup(tree, p.path))
    )


def calibration(job) -> np.ndarray:
    rng = np.random.default_rng((job["seed"], 1))
    return rng.integers(0, job["vocab"], (job["samples"], job["seq_len"]), np.int32)


def budgets(job) -> list[dict[str, int]]:
    """Zeros by linear and block, from `icp_jax`: all sides get the same."""
    from icp_jax.config import PruneConfig
    from icp_jax.models import make_family
    from icp_jax.planning.budgets import budgets

    config = PruneConfig(sparsity=job["sparsity"], alpha=job["alpha"], beta=job["beta"])
    return budgets(make_family(hf_config(job)), [linears(job)] * job["blocks"], config)


def flops(job) -> dict[str, float]:
    """The algorithm's FLOPs by phase; see the top of `bench_prune.py`."""
    d, f = SHAPES[job["shape"]].hidden, SHAPES[job["shape"]].ffn
    blocks, samples, t = job["blocks"], job["samples"], job["seq_len"]
    tokens, layers = samples * t, linears(job)
    forward = 2.0 * tokens * sum(i * o for i, o in layers.values()) + 2.0 * samples * t * t * d
    taps = (d, d, d, f)  # of q/k/v, of what follows attention, of the wide linears, of the last
    grams = tokens * sum(tap**2 for tap in taps)
    factors = 2 / 3 * sum(tap**3 for tap in taps)
    walks = sum(i * i * o for i, o in layers.values())
    first = 2.0 * tokens * 3 * d * d  # the gradient of the input of q, k and v
    return {
        "dense": blocks * forward,
        "statistics": blocks * (forward - 2.0 * tokens * f * d + grams),
        "prune": blocks * (factors + walks),
        "sparse": blocks * forward,
        "compensate": (blocks - 1) * job["epochs"] * (3 * forward - first),
    }
