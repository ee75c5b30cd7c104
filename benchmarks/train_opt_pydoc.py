"""Train the bundled model: an OPT of 3.1 M parameters on the text every CPython carries.

    python benchmarks/train_opt_pydoc.py --out icp_jax/assets/opt-pydoc

Writes a Hugging Face folder (float16), `calibration.txt` (training entries) and `heldout.txt`
(never trained on), and prints the measured facts that `benchmarks/results/train_opt_pydoc.json`
keeps: machine, time, held-out perplexity and that of a unigram model on the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydoc_text import split

from converters import table_for
from converters.layout import plan_layout
from converters.rules import lookup
from converters.safetensors_files import Writer
from icp_jax import api
from icp_jax.core.pruners import magnitude
from icp_jax.models import make_family

VOCAB, WINDOW, BATCH, BOS = 2048, 256, 16, 2
CONFIG = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": VOCAB,
    "hidden_size": 192,
    "word_embed_proj_dim": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "ffn_dim": 768,
    "max_position_embeddings": WINDOW,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "layerdrop": 0.0,
    "init_std": 0.02,
    "bos_token_id": BOS,
    "eos_token_id": BOS,
    "pad_token_id": 1,
    "use_cache": True,
    "dtype": "float16",
}


def train_tokenizer(texts: list[str], folder: Path):
    """A byte-level BPE with OPT's special tokens, in `folder` as transformers reads it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", BOS)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "</s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "model_max_length": WINDOW,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return tokenizer


def epoch_windows(entries: list[np.ndarray], gap: np.ndarray, rng) -> np.ndarray:
    """Shuffled entries joined by blank lines, cut at a random offset; half the windows get BOS."""
    order = rng.permutation(len(entries))
    stream = np.concatenate([part for i in order for part in (entries[i], gap)])
    stream = stream[rng.integers(WINDOW) :]
    windows = stream[: len(stream) // WINDOW * WINDOW].reshape(-1, WINDOW).copy()
    windows[rng.random(len(windows)) < 0.5, 0] = BOS
    return windows[rng.permutation(len(windows))]


def uneven(params, sigma: float, seed: int):
    """The same function with features of unequal size, log-normal with this sigma.

    Norm scales, v and fc1 are multiplied feature by feature, and what reads them divided. OPTs
    that were trained for long have such features, and they are why the size of a weight says
    little about what it does; a short run ends with features that are all about as large.
    """
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: np.array(leaf, np.float32), params)
    pairs = (
        ("self_attn_layer_norm", "scale", ("q_proj", "k_proj", "v_proj")),
        ("final_layer_norm", "scale", ("fc1",)),
        ("v_proj", "kernel", ("out_proj",)),
        ("fc1", "kernel", ("fc2",)),  # relu(r·x) = r·relu(x)
    )
    for block in params["blocks"].values():
        for writer, leaf, readers in pairs:
            r = rng.lognormal(sigma=sigma, size=len(block[writer]["bias"])).astype(np.float32)
            block[writer][leaf] *= r
            block[writer]["bias"] *= r
            for reader in readers:
                block[reader]["kernel"] /= r[:, None]
    return params


def forward(family, params, tokens):
    x = family.embed.apply({"params": params["embed"]}, tokens)
    for t in range(family.n_blocks):
        x = family.block.apply({"params": params["blocks"][str(t)]}, x)
    table = params["embed"]["tokens"]["embedding"]
    return family.head.apply({"params": params["head"]}, x, table)


def nll(family, params, tokens):
    logits = forward(family, params, tokens)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])


def init(family, seed: int):
    keys = jax.random.split(jax.random.key(seed), family.n_blocks + 2)
    tokens = jnp.zeros((1, WINDOW), jnp.int32)
    embed = family.embed.init(keys[-1], tokens)["params"]
    embed = jax.tree.map(lambda leaf: leaf * 0.02 / leaf.std(), embed)
    x = jnp.zeros((1, WINDOW, family.hidden_size))
    blocks = {str(t): family.block.init(keys[t], x)["params"] for t in range(family.n_blocks)}
    head = family.head.init(keys[-2], x, embed["tokens"]["embedding"])["params"]
    return {"embed": embed, "blocks": blocks, "head": head}


def export(params, folder: Path) -> None:
    """Through the converters' own table: the same path that pruned checkpoints take."""
    placed = [p for p in table_for("opt").place(CONFIG) if p.path[1:2] != ("lm_head",)]
    half = np.dtype(np.float16)
    layout = plan_layout({p.name: (half, p.shape) for p in placed}, {"format": "pt"})
    writer = Writer(folder, layout)
    for p in placed:
        writer.write(p.name, p.to_torch(np.asarray(lookup(params, p.path)).astype(half)))
    writer.close()
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def evaluate(family, params, windows) -> float:
    loss = jax.jit(lambda p, tokens: nll(family, p, tokens))
    losses = [np.asarray(loss(params, windows[i : i + 1])) for i in range(len(windows))]
    return float(np.exp(np.mean(losses)))


def by_magnitude(family, params, sparsity: float = 0.7):
    """The params with the smallest weights of every linear of the blocks gone."""
    blocks = {}
    for t, block in params["blocks"].items():
        blocks[t] = dict(block)
        for spec in family.linears:
            kernel = block[spec.name]["kernel"]
            pruned, _ = magnitude(kernel, None, round(sparsity * kernel.size))
            blocks[t][spec.name] = {**block[spec.name], "kernel": pruned}
    return {**params, "blocks": blocks}


def unigram(train: np.ndarray, windows: np.ndarray) -> float:
    counts = np.bincount(train, minlength=VOCAB) + 1.0
    return float(np.exp(-np.mean(np.log(counts / counts.sum())[windows[:, 1:]])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--after", type=int, default=400, help="steps after `uneven`")
    parser.add_argument("--first", type=Path, help="a folder that holds the first stage already")
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    train_texts, test_texts = split()
    tokenizer = train_tokenizer(train_texts, args.out)
    rng = np.random.default_rng(args.seed)
    chosen = [train_texts[i] for i in rng.permutation(len(train_texts))[:1200]]
    (args.out / "calibration.txt").write_text("\n\n".join(chosen) + "\n")
    (args.out / "heldout.txt").write_text("\n\n".join(test_texts) + "\n")
    source = Path(sys.base_prefix, "lib", f"python3.{sys.version_info.minor}", "LICENSE.txt")
    if source.is_file():
        shutil.copyfile(source, args.out / "LICENSE-PYTHON.txt")

    def encode(text, special=False):
        return np.asarray(tokenizer.encode(text, add_special_tokens=special).ids, np.int32)

    entries, gap = [encode(t) for t in train_texts], encode("\n\n")
    test = encode("\n\n".join(test_texts) + "\n", special=True)
    test = test[: len(test) // WINDOW * WINDOW].reshape(-1, WINDOW)
    train_tokens = np.concatenate(entries)
    print(f"{len(train_tokens)} training tokens, {test.size} held-out tokens", flush=True)

    family = make_family(CONFIG)
    params = init(family, args.seed)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))

    def train(params, steps: int, lr: float, rng):
        schedule = optax.warmup_cosine_decay_schedule(0.0, lr, 100, steps, lr / 50)
        kernels = lambda p: jax.tree.map(lambda x: x.ndim > 1, p)  # noqa: E731
        tx = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(schedule, b2=0.98, weight_decay=0.1, mask=kernels),
        )

        @jax.jit
        def step(params, state, tokens):
            loss, grads = jax.value_and_grad(lambda p: nll(family, p, tokens).mean())(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

        state, queue = tx.init(params), []
        for k in range(steps):
            while len(queue) < BATCH:
                queue += list(epoch_windows(entries, gap, rng))
            batch, queue = np.stack(queue[:BATCH]), queue[BATCH:]
            params, state, loss = step(params, state, batch)
            if k % 100 == 0 or k == steps - 1:
                seconds = time.monotonic() - started
                print(f"step {k} loss {float(loss):.3f} {seconds:.0f} s", flush=True)
        return params

    if args.first:
        params = api.load(args.first, np.float32).params
        params["head"].pop("lm_head", None)
    else:
        params = train(params, args.steps, args.lr, rng)
    print(f"first stage: held-out perplexity {evaluate(family, params, test):.3f}", flush=True)
    params = uneven(params, 0.4, args.seed)
    params = train(params, args.after, args.lr / 5, np.random.default_rng((args.seed, 1)))

    export(params, args.out)
    params = jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), params)
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "parameters": size,
        "training_tokens": int(train_tokens.size),
        "tokens_seen": (args.steps + args.after) * BATCH * WINDOW,
        "heldout_tokens": int(test.size),
        "seconds": round(time.monotonic() - started),
        "perplexity": round(evaluate(family, params, test), 3),
        "magnitude_70_perplexity": round(evaluate(family, by_magnitude(family, params), test), 3),
        "unigram_perplexity": round(unigram(train_tokens, test), 3),
    }
    print(json.dumps(facts, indent=2))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "train_opt_pydoc.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
