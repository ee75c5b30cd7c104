"""SAM's tensors under the names of Hugging Face and of Meta, and configs that are refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.rules import ConversionError, check_shape, insert, lookup
from converters.sam import TABLE
from converters.sam_names import META, config_of
from icp_jax.errors import InputError
from icp_jax.models.sam import SamConfig, apply_sam, encode_image, make, predict_masks

pytest.importorskip("torch")
pytest.importorskip("transformers")
from sam_oracle import VISION, models, normal, prompts, sizes, tensors_of

pytestmark = pytest.mark.needs_torch


def meta_tensors(config, tensors):
    """The same weights under the names of Meta's files, by the two tables' common tree."""
    ours = {p.path: p for p in TABLE.place(config, list(tensors))}
    names = meta_names()
    placed = {p.path: p for p in TABLE.place(config, names)}
    return {p.name: tensors[ours[path].name] for path, p in placed.items()}


def meta_names():
    """The state dict of segment_anything's Sam with three blocks, by its modules."""
    both = ["weight", "bias"]
    names = ["image_encoder.pos_embed", *(f"image_encoder.patch_embed.proj.{w}" for w in both)]
    for i in range(3):
        at = f"image_encoder.blocks.{i}"
        parts = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2"]
        names += [f"{at}.attn.rel_pos_{x}" for x in "hw"]
        names += [f"{at}.{part}.{w}" for part in parts for w in both]
    names += [f"image_encoder.neck.{k}.weight" for k in range(4)]
    names += [f"image_encoder.neck.{k}.bias" for k in (1, 3)]
    names += ["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    names += [f"prompt_encoder.point_embeddings.{k}.weight" for k in range(4)]
    names += [f"prompt_encoder.{x}_embed.weight" for x in ("not_a_point", "no_mask")]
    names += [f"prompt_encoder.mask_downscaling.{k}.{w}" for k in (0, 1, 3, 4, 6) for w in both]
    at = "mask_decoder.transformer"
    attentions = [f"{at}.final_attn_token_to_image"]
    for i in range(2):
        attentions += [
            f"{at}.layers.{i}.{x}"
            for x in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        ]
        parts = ["norm1", "norm2", "norm3", "norm4", "mlp.lin1", "mlp.lin2"]
        names += [f"{at}.layers.{i}.{part}.{w}" for part in parts for w in both]
    names += [f"{a}.{x}_proj.{w}" for a in attentions for x in ("q", "k", "v", "out") for w in both]
    names += [f"{at}.norm_final_attn.{w}" for w in both]
    names += ["mask_decoder.iou_token.weight", "mask_decoder.mask_tokens.weight"]
    names += [f"mask_decoder.output_upscaling.{k}.{w}" for k in (0, 1, 3) for w in both]
    heads = [f"mask_decoder.output_hypernetworks_mlps.{k}" for k in range(4)]
    heads += ["mask_decoder.iou_prediction_head"]
    return names + [f"{h}.layers.{j}.{w}" for h in heads for j in range(3) for w in both]


def round_trip(config, tensors):
    placed = TABLE.place(config, list(tensors))
    tree = {}
    for rule in placed:
        check_shape(rule, tensors[rule.name].shape)
        insert(tree, rule.path, rule.to_tree(tensors[rule.name]))
    back = {rule.name: rule.to_torch(lookup(tree, rule.path)) for rule in placed}
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].tobytes() == tensor.tobytes(), name
        assert back[name].shape == tensor.shape and back[name].flags["C_CONTIGUOUS"], name
    return tree


def test_hugging_face_names_round_trip():
    config, _, model, _ = models("windows")
    tensors = tensors_of(model)
    tree = round_trip(config, tensors)
    for leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert leaf[0][-1].key != "kernel" or leaf[1].ndim == 2
    round_trip(config, {f"sam.{k}": v for k, v in tensors.items()})


def test_meta_names_round_trip_and_compute_the_same():
    config, sam, model, tree = models("windows")
    tensors = meta_tensors(config, tensors_of(model))
    assert set(tensors) == set(meta_names())
    again = jax.tree.map(jnp.asarray, round_trip(config, tensors))
    assert set(again["positions"]) == {"prompt"}
    buffers = {"pixel_mean": normal(3, 1, 1), "pixel_std": normal(3, 1, 1)}
    round_trip(config, {**tensors, **buffers})
    pixels, given = normal(1, 3, 64, 64), {k: v[:1] for k, v in prompts("points", 64).items()}
    found = apply_sam(sam, again, pixels, **given)
    expected = predict_masks(sam, tree, encode_image(sam, tree, pixels), **given)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_config_of_meta_shapes():
    config, sam, model, _ = models("windows")
    tensors = meta_tensors(config, tensors_of(model))
    found = SamConfig.from_hf(config_of({k: v.shape for k, v in tensors.items()}))
    heads = replace(found.decoder, num_attention_heads=2, iou_head_hidden_dim=20)
    assert replace(found, decoder=heads) == sam
    with pytest.raises(ConversionError, match="Meta"):
        config_of({"model.decoder.embed_tokens.weight": (3, 4)})


@pytest.mark.parametrize("there", [(0, 1), (0,), (1,)])
def test_either_copy_of_the_frequencies_will_do(there):
    config, sam, model, tree = models("windows")
    tensors = tensors_of(model)
    twice = [
        "shared_image_embedding.positional_embedding",
        "prompt_encoder.shared_embedding.positional_embedding",
    ]
    copies = {name: tensors.pop(name) for name in twice}
    tensors |= {twice[k]: copies[twice[k]] for k in there}
    again = jax.tree.map(jnp.asarray, round_trip(config, tensors))
    given = {k: v[:1] for k, v in prompts("points+boxes", 64).items()}
    image = jnp.asarray(normal(1, 8, 8, 16))
    a, b = (predict_masks(sam, t, image, **given)[0] for t in (again, tree))
    np.testing.assert_array_equal(a, b)


def test_copies_of_the_frequencies_that_differ_stay_so():
    config, _, model, _ = models("windows")
    tensors = tensors_of(model)
    tensors["shared_image_embedding.positional_embedding"] = normal(2, 8)
    round_trip(config, tensors)


def test_bad_checkpoints_are_refused_by_name():
    config, _, model, _ = models("windows")
    names = list(tensors_of(model))
    without = [n for n in names if "positional_embedding" not in n]
    with pytest.raises(ConversionError, match=r"missing.*positional_embedding"):
        TABLE.place(config, without)
    with pytest.raises(ConversionError, match="unknown tensor 'extra'"):
        TABLE.place(config, [*names, "extra"])
    with pytest.raises(ConversionError, match=r"missing.*blocks\.1\.attn\.qkv\.bias"):
        TABLE.place(config, [n for n in meta_names() if "1.attn.qkv.bias" not in n])
    with pytest.raises(ConversionError, match="not a sam checkpoint"):
        TABLE.place(config, ["lm_head.weight"])
    assert len(meta_names()) == len(set(meta_names())) and META.ends is False
    rule = next(p for p in TABLE.place(config) if p.name.endswith("neck.conv2.weight"))
    with pytest.raises(ConversionError, match="neck.conv2"):
        rule.to_torch(np.zeros((16, 16), np.float32))


def test_written_names_are_those_of_transformers(tmp_path):
    from safetensors import safe_open

    config, _, model, _ = models("windows")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        names = list(file.keys())
    assert {p.name for p in TABLE.place(config)} == set(names)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_config", {"image_size": [64, 32]}, "two equal ones"),
        ("vision_config", {"hidden_act": "tanh"}, "hidden_act 'tanh'"),
        ("vision_config", {"num_attention_heads": 5}, "not a multiple of 5"),
        ("vision_config", {"num_pos_feats": 7}, "must be equal"),
        ("prompt_encoder_config", {"image_size": 128}, "differ in image"),
        ("prompt_encoder_config", 3, "not an object"),
    ],
)
def test_bad_configs_are_refused(part, change, message):
    config = sizes(VISION)
    config[part] = {**config[part], **change} if isinstance(change, dict) else change
    with pytest.raises(InputError, match=message):
        make(config)
