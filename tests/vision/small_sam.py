"""A random SAM of a few thousand weights as a folder or as Meta's file, and folders of images."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from converters.layout import plan_layout
from converters.safetensors_files import Writer
from converters.sam import META, TABLE, _tensors

SIDE = 64
CONFIG = {
    "architectures": ["SamModel"],
    "model_type": "sam",
    "vision_config": {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        "window_size": 3,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_dim": 32,
    },
    "prompt_encoder_config": {
        "hidden_size": 16,
        "image_size": SIDE,
        "patch_size": 8,
        "mask_input_channels": 8,
    },
    "mask_decoder_config": {
        "hidden_size": 16,
        "mlp_dim": 24,
        "num_attention_heads": 8,  # Meta's files do not tell it: always 8
        "iou_head_hidden_dim": 256,
    },
}


def tensors(dtype=np.float32, seed=0, config=CONFIG) -> dict[str, np.ndarray]:
    """Random values under Hugging Face's names, at scales that keep activations near 1."""
    rng, found = np.random.default_rng(seed), {}
    for p in TABLE.place(config):
        value = rng.normal(size=p.shape)
        if p.path[-1] == "kernel":
            value /= np.prod(p.shape[1:]) ** 0.5
        elif p.path[-1] == "scale":
            value = 1 + 0.1 * value
        elif p.path[-1] == "bias":
            value *= 0.1
        found[p.name] = value.astype(dtype)
    return found


def write_sam(folder: Path, dtype=np.float32, seed=0, config=CONFIG) -> Path:
    """A Hugging Face folder."""
    folder.mkdir(parents=True)
    found, kind = tensors(dtype, seed, config), np.dtype(dtype)
    writer = Writer(folder, plan_layout({k: (kind, v.shape) for k, v in found.items()}, {}))
    for name, tensor in found.items():
        writer.write(name, tensor)
    writer.close()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text("{}\n")
    return folder


def meta_names() -> dict[str, str]:
    """Meta's name of every tensor -> Hugging Face's, by the places both have in the tree."""
    ours = {p.path: p.name for p in TABLE.place(CONFIG)}
    both = (ours[("positions", "image", "embedding")],)  # Meta has the frequencies once
    placed = [p for p in _tensors(CONFIG, META, "") if p.path[0] != "pixels"]
    return {p.name: ours.get(p.path, *both) for p in placed}


def write_meta(path: Path, dtype=np.float32, seed=0, **pixels) -> Path:
    """The same weights as one of Meta's `.pth` files. Needs torch.

    pixels: `pixel_mean` and `pixel_std`, three numbers each.
    """
    import torch

    found = tensors(dtype, seed)
    state = {k: torch.from_numpy(found[v]) for k, v in meta_names().items()}
    state |= {k: torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for k, v in pixels.items()}
    torch.save(state, path)
    return path


def scene(seed: int, h: int = 48, w: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image and two masks that overlap in nothing."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    image = np.array(small.resize((w, h), Image.Resampling.BICUBIC))
    masks = np.zeros((2, h, w), bool)
    masks[0, 5:20, 4 + seed % 9 : 25] = True
    masks[1, 25:44, 30:50] = True
    masks[1, 30:34, 38:42] = False  # a hole
    return image, masks


def write_images(folder: Path, count=4) -> Path:
    """Plain images."""
    folder.mkdir(parents=True)
    for k in range(count):
        Image.fromarray(scene(k)[0]).save(folder / f"{k}.png")
    return folder


def write_sa1b(folder: Path, count=4) -> Path:
    """Images with a json of run lengths, a box and a point beside each. Needs pycocotools."""
    from pycocotools import mask as coder

    write_images(folder, count)
    for k in range(count):
        rows = []
        for n, mask in enumerate(scene(k)[1]):
            code = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
            y, x = np.argwhere(mask)[len(np.argwhere(mask)) // 3]
            rows.append(
                {
                    "id": 10 * k + n,
                    "bbox": coder.toBbox(code).tolist(),
                    "point_coords": [[float(x), float(y)]],
                    "segmentation": {**code, "counts": code["counts"].decode()},
                }
            )
        record = {"image": {"image_id": k}, "annotations": rows}
        (folder / f"{k}.json").write_text(json.dumps(record))
    return folder


def write_coco(folder: Path, count=4, split="val2017") -> Path:
    """The same objects in COCO's layout, as uncompressed run lengths. Needs no pycocotools."""
    write_images(folder / split, count)
    images, rows = [], []
    for k in range(count):
        images.append({"id": 100 + k, "file_name": f"{k}.png", "height": 48, "width": 60})
        for n, mask in enumerate(scene(k)[1]):
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
            flat = mask.ravel(order="F").astype(int)
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
            counts = np.diff(np.concatenate([[0], edges])).tolist()
            rows.append(
                {
                    "id": 10 * k + n,
                    "image_id": 100 + k,
                    "category_id": 1,
                    "bbox": [int(v) for v in box],
                    "segmentation": {"size": [48, 60], "counts": counts},
                }
            )
    (folder / "annotations").mkdir(exist_ok=True)
    record = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(record))
    return folder
