"""Scenes of overlapping textured shapes, made from a seed, and the small SAM that segments them.

A scene is a background and three to seven shapes laid over one another; its masks are what is
still visible of each. Seeds from `HELD_OUT` on are for measuring, those below for training and
calibration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 128
HELD_OUT = 10**9
LEAST = 1 / 100  # of the image: what shows less of itself is no target

CONFIG: dict[str, Any] = {
    "architectures": ["SamModel"],
    "model_type": "sam",
    "vision_config": {
        "hidden_size": 96,
        "output_channels": 128,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
        "window_size": 6,
        "global_attn_indexes": [1, 3, 5, 7],
        "num_pos_feats": 64,
        "mlp_dim": 384,
    },
    "prompt_encoder_config": {
        "hidden_size": 128,
        "image_size": SIDE,
        "patch_size": 8,
        "mask_input_channels": 16,
    },
    "mask_decoder_config": {
        "hidden_size": 128,
        "mlp_dim": 512,
        "num_attention_heads": 4,
        "iou_head_hidden_dim": 128,
    },
}


def scene(seed: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """(image `[side, side, 3]` uint8, visible masks `[k, side, side]` bool, k at least 1)."""
    rng = np.random.default_rng(seed)
    whole = (0, 0, side, side)
    image = _texture(rng, whole, side)
    label = np.zeros((side, side), np.uint8)
    count = int(rng.integers(3, 8))
    for k in range(1, count + 1):
        outline = _outline(rng, side)
        drawn = Image.new("1", (side, side))
        ImageDraw.Draw(drawn).polygon([tuple(p) for p in outline.tolist()], fill=1)
        box = drawn.getbbox()
        if box is None:
            continue
        left, top, right, bottom = box
        inside = np.asarray(drawn.crop(box))
        image[top:bottom, left:right][inside] = _texture(rng, box, side)[inside]
        label[top:bottom, left:right][inside] = k
    image += rng.normal(0, rng.uniform(0, 0.05), image.shape).astype(np.float32)
    pixels = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    if rng.random() < 0.5:
        pixels = pixels.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    masks = label == np.arange(1, count + 1, dtype=np.uint8)[:, None, None]
    masks = masks[masks.mean((1, 2)) >= LEAST]
    return (np.asarray(pixels), masks) if len(masks) else scene(seed + (1 << 40), side)


def _outline(rng: np.random.Generator, side: int) -> np.ndarray:
    """Corners of an ellipse, a rectangle, a star-like polygon or a blob, turned at random."""
    kind = rng.integers(4)
    n = int(rng.integers(3, 9)) if kind == 2 else 4 if kind == 1 else 48
    turn = (np.arange(n) + (rng.uniform(-0.3, 0.3, n) if kind == 2 else 0.5)) * 2 * np.pi / n
    radius = np.ones(n)
    if kind == 2:
        radius = rng.uniform(0.5, 1, n)
    elif kind == 3:
        for wave in (2, 3, 4, 5):
            radius += rng.uniform(0, 0.5 / wave) * np.sin(wave * turn + rng.uniform(0, 6.3))
    size = side * np.exp(rng.uniform(np.log(0.09), np.log(0.33)))
    points = np.stack([np.cos(turn), np.sin(turn)], 1) * radius[:, None]
    points *= size * np.array([1, rng.uniform(0.45, 1)])
    angle = rng.uniform(0, np.pi)
    spin = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ spin.T + rng.uniform(0.08, 0.92, 2) * side


def _texture(rng: np.random.Generator, box: tuple[int, int, int, int], side: int) -> np.ndarray:
    """Two colours and a pattern between them, `[h, w, 3]` float32 in [0, 1]."""
    left, top, right, bottom = box
    first = rng.uniform(0, 1, 3).astype(np.float32)
    second = np.clip(first + rng.normal(0, 0.2, 3), 0, 1).astype(np.float32)
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32) / np.float32(side)
    angle, waves = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(3), np.log(16)))
    along = (x * np.cos(angle) + y * np.sin(angle)).astype(np.float32)
    kind = rng.integers(6)
    if kind == 0:
        part = np.zeros_like(x)
    elif kind == 1:
        part = (along - along.min()) / max(float(np.ptp(along)), 1e-3)
    elif kind == 2:
        part = 0.5 + 0.5 * np.sin(along * np.float32(2 * np.pi * waves))
    elif kind == 3:
        across = (y * np.cos(angle) - x * np.sin(angle)).astype(np.float32)
        part = ((np.floor(along * waves) + np.floor(across * waves)) % 2).astype(np.float32)
    else:
        cells = int(rng.integers(3, 14))
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        size = (right - left, bottom - top)
        part = np.asarray(noise.resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    return first + (second - first) * part[..., None].astype(np.float32)


def inner_point(rng: np.random.Generator, mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of a pixel of the mask, each as likely as any other."""
    rows, columns = np.nonzero(mask)
    k = int(rng.integers(len(rows)))
    return int(columns[k]), int(rows[k])


def write_folder(folder: Path, first: int, count: int, side: int = SIDE) -> Path:
    """Scenes `first`, `first + 1`, ... as an SA-1B directory: images, masks as RLE, one point."""
    from pycocotools import mask as coder

    folder.mkdir(parents=True)
    for seed in range(first, first + count):
        image, masks = scene(seed, side)
        rng, rows = np.random.default_rng((seed, 1)), []
        for k, mask in enumerate(masks):
            code = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
            row = {
                "id": k,
                "area": int(mask.sum()),
                "bbox": [float(v) for v in coder.toBbox(code)],
                "point_coords": [[float(v) for v in inner_point(rng, mask)]],
                "segmentation": {"size": [side, side], "counts": code["counts"].decode()},
            }
            rows.append(row)
        name = f"sa_{seed}"
        Image.fromarray(image).save(folder / f"{name}.png")
        about = {"image_id": seed, "width": side, "height": side, "file_name": f"{name}.png"}
        (folder / f"{name}.json").write_text(json.dumps({"image": about, "annotations": rows}))
    return folder
