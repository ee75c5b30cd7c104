"""Small SAMs of transformers' torch classes, with random weights in every table, norm and bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.rules import check_shape, insert
from converters.sam import TABLE
from icp_jax.models.sam import SamConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VISION = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
    "window_size": 3,  # a grid of 8: windows are padded
    "global_attn_indexes": [1],
    "num_pos_feats": 8,
    "mlp_dim": 48,
}
TABLES = ("pos_embed", "point_embed", "no_mask_embed", "iou_token", "mask_tokens", "rel_pos")
VARIANTS = {
    "windows": {},
    "patch16": {"image_size": 128, "patch_size": 16, "window_size": 4, "mlp_dim": None},
    "no_qkv_bias": {"qkv_bias": False},
    "no_rel_pos": {"use_rel_pos": False},
    "no_abs_pos": {"use_abs_pos": False},
    "all_global": {"window_size": 0, "global_attn_indexes": []},
    "wide_window": {"window_size": 11, "hidden_act": "relu"},
}


def sizes(vision):
    """The whole config: prompt encoder and mask decoder to go with an encoder."""
    side = {k: vision[k] for k in ("image_size", "patch_size")}
    width = vision["output_channels"]
    return {
        "model_type": "sam",
        "vision_config": vision,
        "prompt_encoder_config": {**side, "hidden_size": width, "mask_input_channels": 8},
        "mask_decoder_config": {
            "hidden_size": width,
            "mlp_dim": 24,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 20,
            "iou_head_depth": 3,
        },
    }


def torch_model(config, seed=0):
    """A SamModel whose every parameter is random, at scales that keep activations near 1."""
    model = transformers.SamModel(transformers.SamConfig(**config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * noise)
            elif name.endswith("positional_embedding"):
                p.copy_(noise)
            elif p.ndim == 1:
                p.copy_(0.2 * noise)
            elif any(part in name for part in TABLES):
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise / float(np.prod(p.shape[1:])) ** 0.5)
    return model


def tensors_of(model):
    return {k: v.numpy() for k, v in model.state_dict().items()}


def tree_of(config, tensors):
    tree = {}
    for rule in TABLE.place(config, list(tensors)):
        check_shape(rule, tensors[rule.name].shape)
        insert(tree, rule.path, rule.to_tree(tensors[rule.name]))
    return jax.tree.map(jnp.asarray, tree)


@functools.cache
def models(name):
    """(config, SamConfig, torch's model, our tree) of a variant."""
    config = sizes({**VISION, **VARIANTS[name]})
    model = torch_model(config)
    return config, SamConfig.from_hf(config), model, tree_of(config, tensors_of(model))


def error(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.1  # not a comparison of nothings
    return float(np.abs(ours - theirs).max())


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def prompts(kind, image_size):
    rng = np.random.default_rng(5)
    points = rng.uniform(0, image_size, (2, 3, 4, 2)).astype(np.float32)
    labels = np.array([[[1, 0, 1, -1]] * 3, [[0, 1, -10, -10]] * 3], np.int32)
    boxes = np.sort(rng.uniform(0, image_size, (2, 3, 2, 2)), axis=2).reshape(2, 3, 4)
    masks = 3 * normal(2, 1, 4 * 8, 4 * 8)
    given = {
        "points": {"points": points, "labels": labels},
        "unlabelled": {"points": points},
        "boxes": {"boxes": boxes.astype(np.float32)},
        "masks": {"masks": masks},
        "nothing": {},
    }
    return {k: v for part in kind.split("+") for k, v in given[part].items()}
