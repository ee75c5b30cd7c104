"""Train the small SAM: 1.9 M parameters, on scenes of shapes made on the fly, within an hour.

    python benchmarks/train_sam_shapes.py --out benchmarks/assets/sam-shapes --minutes 50

One click or one box on an object, three masks and their predicted IoU; focal and dice loss of the
best of the three. Writes a Hugging Face folder (float16) and prints the facts that
`benchmarks/results/train_sam_shapes.json` keeps. The learning rate follows the clock, so that the
run ends in time on any machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sam_shapes import CONFIG, HELD_OUT, inner_point, scene

from converters import table_for
from converters.layout import plan_layout
from converters.rules import insert, lookup
from converters.safetensors_files import Writer
from icp_jax.models.sam import SamConfig, encode_image, predict_masks
from icp_jax.vision.image_settings import ImageSettings

SAM = SamConfig.from_hf(CONFIG)
MEAN, STD = (np.float32(values) for values in (ImageSettings.mean, ImageSettings.std))
BATCH, PROMPTS = 8, 6  # scenes a step, prompts a scene
WARMUP = 300  # steps
KINDS = ((False, True), (False, True), (True, True), (False, False))  # (box, three masks) a step


def init(seed: int) -> dict[str, Any]:
    """Random params: kernels by fan-in, embeddings of the prompts and frequencies of size one."""
    rng, tree = np.random.default_rng(seed), {}
    for placed in table_for("sam").place(CONFIG):
        shape, leaf = placed.to_tree(np.empty(placed.shape)).shape, placed.path[-1]
        value = np.zeros(shape)
        if leaf == "scale":
            value += 1
        elif leaf == "kernel":
            value = rng.normal(size=shape) / np.sqrt(shape[0])
        elif leaf == "embedding" and "rel_pos" not in placed.path[-2]:
            value = rng.normal(size=shape) * (0.02 if placed.path[0] == "embed" else 1)
        insert(tree, placed.path, jnp.asarray(value, jnp.float32))
    return tree


def batch(start: int) -> dict[str, np.ndarray]:
    """Scenes `start` on: pixels, a point and a box for each of PROMPTS objects, their masks."""
    out: dict[str, list] = {"pixels": [], "points": [], "boxes": [], "targets": []}
    for seed in range(start, start + BATCH):
        image, masks = scene(seed)
        rng = np.random.default_rng((seed, 1))
        chosen = rng.permutation(np.resize(np.arange(len(masks)), PROMPTS))
        picked = masks[chosen]
        out["pixels"].append(((image / np.float32(255) - MEAN) / STD).transpose(2, 0, 1))
        out["points"].append([inner_point(rng, mask) for mask in picked])
        out["boxes"].append([_box(rng, mask) for mask in picked])
        small = picked.reshape(PROMPTS, *(n for s in masks.shape[1:] for n in (s // 2, 2)))
        out["targets"].append(small.mean((2, 4)))
    found = {name: np.asarray(values, np.float32) for name, values in out.items()}
    found["points"] = found["points"][:, :, None]
    return found


def _box(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """The mask's box, its corners shaken by a twentieth of its size."""
    rows, columns = np.nonzero(mask)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)
    size = np.tile(box[2:] - box[:2], 2)
    return np.clip(box + rng.normal(0, 0.05, 4) * size, 0, mask.shape[1])


def mask_losses(logits, targets):
    """(focal and dice loss, true IoU) of mask logits `[b, p, m, s, s]` for targets `[b, p, s, s]`.

    Targets are the part of a cell that the object covers.
    """
    targets = targets[:, :, None]
    chance = jax.nn.sigmoid(logits)
    entropy = optax.sigmoid_binary_cross_entropy(logits, targets)
    miss = jnp.square(chance - targets)
    focal = jnp.mean(entropy * miss, (-2, -1))
    both, total = jnp.sum(chance * targets, (-2, -1)), jnp.sum(chance + targets, (-2, -1))
    dice = 1 - (2 * both + 1) / (total + 1)
    hard, true = logits > 0, targets > 0.5
    union = jnp.sum(hard | true, (-2, -1))
    iou = jnp.sum(hard & true, (-2, -1)) / jnp.maximum(union, 1)
    return 20 * focal + dice, iou


def loss(params, data, kind: tuple[bool, bool]):
    """Of the best mask (and a tenth of all), and of the predicted IoU; the chosen mask's IoU.

    kind: whether the prompts are boxes, whether there are three masks a prompt.
    """
    boxes, several = kind
    image = encode_image(SAM, params, data["pixels"])
    prompt = {"boxes": data["boxes"]} if boxes else {"points": data["points"]}
    logits, scores = predict_masks(SAM, params, image, **prompt, multimask_output=several)
    losses, iou = mask_losses(logits, data["targets"])
    total = jnp.mean(jnp.min(losses, -1)) + 0.1 * jnp.mean(losses)
    total += jnp.mean(jnp.square(scores - iou))
    chosen = jnp.argmax(scores, -1)[..., None]
    return total, jnp.mean(jnp.take_along_axis(iou, chosen, -1))


kernels = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)  # noqa: E731
TX = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.scale_by_adam(b2=0.98),
    optax.add_decayed_weights(0.05, kernels),
)


@partial(jax.jit, static_argnums=4, donate_argnums=(0, 1))
def update(params, state, data, lr, kind):
    """One step of AdamW; the frequencies stay as they are drawn."""
    (value, iou), grads = jax.value_and_grad(loss, has_aux=True)(params, data, kind)
    grads["positions"] = jax.tree.map(jnp.zeros_like, grads["positions"])
    updates, state = TX.update(grads, state, params)
    updates["positions"] = jax.tree.map(jnp.zeros_like, updates["positions"])
    params = jax.tree.map(lambda p, u: p - lr * u, params, updates)
    return params, state, value, iou


def export(params, folder: Path) -> None:
    """Through the converters' own table: the same path that pruned checkpoints take."""
    folder.mkdir(parents=True, exist_ok=True)
    half, placed = np.dtype(np.float16), table_for("sam").place(CONFIG)
    layout = plan_layout({p.name: (half, p.shape) for p in placed}, {"format": "pt"})
    writer = Writer(folder, layout)
    for p in placed:
        writer.write(p.name, p.to_torch(np.asarray(lookup(params, p.path)).astype(half)))
    writer.close()
    config = {**CONFIG, "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    params, started = init(args.seed), time.monotonic()
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{size} parameters", flush=True)
    check = jax.jit(partial(loss, kind=KINDS[0]))
    held_out = [batch(HELD_OUT + 10**6 + k * BATCH) for k in range(8)]
    state, step, done = TX.init(params), 0, 0.0
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(batch, 0)
        while done < 1:
            data, coming = coming.result(), ahead.submit(batch, (step + 1) * BATCH)
            done = min(1.0, (time.monotonic() - started) / (60 * args.minutes))
            lr = args.lr * min(1, (step + 1) / WARMUP) * (0.02 + 0.49 * (1 + np.cos(np.pi * done)))
            kind = KINDS[step % len(KINDS)]
            params, state, value, _ = update(params, state, data, np.float32(lr), kind)
            step += 1
            if step % 250 == 0 or done == 1:
                found = np.mean([[float(v) for v in check(params, d)] for d in held_out], 0)
                seconds = time.monotonic() - started
                print(
                    f"step {step} loss {float(value):.3f}; held out {found[0]:.3f}, "
                    f"IoU {found[1]:.4f}; {seconds:.0f} s",
                    flush=True,
                )
            if step % 1000 == 0:
                export(params, args.out)
    export(params, args.out)
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "parameters": size,
        "steps": step,
        "scenes_seen": step * BATCH,
        "seconds": round(time.monotonic() - started),
        "lowres_iou": round(float(found[1]), 4),
    }
    print(json.dumps(facts, indent=2))
    results = Path(__file__).parent / "results"
    (results / "train_sam_shapes.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
