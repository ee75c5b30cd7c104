"""SAM against transformers' torch classes, with random weights in every table, norm and bias."""

import resource
import time
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
from icp_jax.models.sam.encoder import Block

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.needs_torch

encode = jax.jit(encode_image, static_argnums=0)  # the rest is op by op: less to compile

BLOCK, EMBEDDING, MASKS = 1e-5, 1e-4, 1e-3  # the largest absolute error allowed
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


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(name):
        if name not in made:
            config = sizes({**VISION, **VARIANTS[name]})
            model = torch_model(config)
            tree = tree_of(config, tensors_of(model))
            made[name] = config, SamConfig.from_hf(config), model, tree
        return made[name]

    return get


def error(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.1  # not a comparison of nothings
    return float(np.abs(ours - theirs).max())


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------- the encoder


@pytest.mark.parametrize("name", VARIANTS)
def test_blocks_match(models, name):
    config, sam, model, tree = models(name)
    family, grid = make(config), sam.vision.grid
    x = normal(2, grid, grid, sam.vision.hidden_size)
    for t in range(family.n_blocks):
        ours = family.block_at(t).apply({"params": tree["blocks"][str(t)]}, x)
        theirs = model.vision_encoder.layers[t](torch.from_numpy(x))
        assert error(ours, theirs) <= BLOCK


@pytest.mark.parametrize("side", [5, 13])
def test_relative_positions_of_another_grid_are_interpolated(models, side):
    _, sam, model, tree = models("windows")
    x = normal(1, side, side, sam.vision.hidden_size)
    ours = Block(sam.vision, 0).apply({"params": tree["blocks"]["1"]}, x)
    assert error(ours, model.vision_encoder.layers[1](torch.from_numpy(x))) <= BLOCK


@pytest.mark.parametrize("scores", [1, 2 * 8**3, 2 * 8**4])  # a row of a head; rows; heads
def test_chunks_give_what_all_scores_at_once_give(models, monkeypatch, scores):
    _, sam, _, tree = models("windows")
    x = normal(2, 8, 8, sam.vision.hidden_size)
    module, params = Block(sam.vision, 0), tree["blocks"]["1"]

    def run(params):
        return jnp.sum(jnp.sin(module.apply({"params": params}, x)))

    whole, whole_grad = jax.value_and_grad(run)(params)
    monkeypatch.setattr("icp_jax.models.sam.attention.SCORES", {jax.default_backend(): scores})
    parts, parts_grad = jax.value_and_grad(run)(params)
    assert abs(whole - parts) <= 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), whole_grad, parts_grad)


@pytest.mark.parametrize("name", VARIANTS)
def test_image_embeddings_match(models, name):
    config, sam, model, tree = models(name)
    pixels = normal(2, 3, sam.vision.image_size, sam.vision.image_size)
    ours = encode(sam, tree, pixels)
    theirs = model.get_image_embeddings(torch.from_numpy(pixels)).permute(0, 2, 3, 1)
    assert error(ours, theirs) <= EMBEDDING
    family = make(config)
    x = family.embed.apply({"params": tree["embed"]}, pixels)
    for t in range(family.n_blocks):
        x = family.block_at(t).apply({"params": tree["blocks"][str(t)]}, x)
    x = family.head.apply({"params": tree["head"]}, x, family.head_table(tree["embed"]))
    np.testing.assert_allclose(x, ours, atol=1e-5)


def test_taps_are_the_inputs_of_the_linears(models):
    config, sam, model, tree = models("windows")
    family, seen = make(config), {}
    layer = model.vision_encoder.layers[1]  # global: no window is padded or cut
    names = {"qkv": layer.attn.qkv, "proj": layer.attn.proj, "lin1": layer.mlp.lin1}
    names["lin2"] = layer.mlp.lin2
    hooks = [
        linear.register_forward_pre_hook(lambda m, given, name=name: seen.update({name: given[0]}))
        for name, linear in names.items()
    ]
    x = normal(2, 8, 8, sam.vision.hidden_size)
    layer(torch.from_numpy(x))
    for hook in hooks:
        hook.remove()
    params = {"params": tree["blocks"]["1"]}
    _, found = family.block_at(1).apply(params, x, mutable=["taps"])
    assert {spec.name for spec in family.linears} == set(names)
    for spec in family.linears:
        (tap,) = found["taps"][spec.tap]
        assert error(tap, seen[spec.name].reshape(tap.shape)) <= BLOCK
    params = {"params": tree["blocks"]["0"]}  # windowed: taps of the same shapes
    _, found = family.block_at(0).apply(params, x, mutable=["taps"])
    assert all(tap[0].shape[:3] == (2, 8, 8) for tap in found["taps"].values())


def test_family_shares_one_module_among_like_blocks(models):
    config, *_ = models("windows")
    family = make(config)
    assert family.block_at(0) == family.block_at(2) != family.block_at(1)
    assert hash(family.block_at(0)) == hash(make(config).block_at(2))
    assert family.default_rearrangement == "qkv-f2"


# ---------------------------------------------------------------- prompts and masks


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


KINDS = "points unlabelled boxes points+boxes masks points+masks boxes+masks points+boxes+masks"


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", [*KINDS.split(), "nothing"])
def test_masks_and_scores_match(models, kind, multimask):
    _, sam, model, tree = models("windows")
    pixels = normal(2, 3, 64, 64)
    given = prompts(kind, 64)
    image = encode(sam, tree, pixels)
    masks, scores = predict_masks(sam, tree, image, **given, multimask_output=multimask)
    theirs = {f"input_{k}": torch.from_numpy(v) for k, v in given.items()}
    with torch.no_grad():
        out = model(torch.from_numpy(pixels), **theirs, multimask_output=multimask)
    assert masks.shape[2] == (3 if multimask else 1)
    assert error(masks, out.pred_masks) <= MASKS
    assert error(scores, out.iou_scores) <= MASKS


def test_a_mask_for_each_prompt_equals_one_prompt_at_a_time(models):
    _, sam, _, tree = models("windows")
    image = jnp.asarray(normal(1, 8, 8, 16))
    given = {k: v[:1] for k, v in prompts("points", 64).items()}
    each = normal(1, 3, 32, 32)
    predict = jax.jit(predict_masks, static_argnums=0)
    masks, scores = predict(sam, tree, image, **given, masks=each)
    for p in range(3):
        one = {k: v[:, p : p + 1] for k, v in given.items()}
        mask, score = predict(sam, tree, image, **one, masks=each[:, p : p + 1])
        np.testing.assert_allclose(masks[:, p : p + 1], mask, atol=1e-5)
        np.testing.assert_allclose(scores[:, p : p + 1], score, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_half_precision_streams_stay_half_and_close(models, dtype):
    config, _, _, tree = models("windows")
    x = jnp.asarray(normal(1, 8, 8, 32))
    for t in (0, 1):
        module, params = make(config).block_at(t), {"params": tree["blocks"][str(t)]}
        y = module.apply(params, x.astype(dtype))
        assert y.dtype == dtype
        exact = module.apply(params, x)
        assert np.abs(y.astype(jnp.float32) - exact).max() < 0.03 * np.abs(exact).max()


def test_init_makes_the_tree_of_the_table(models):
    config, _, _, tree = models("windows")
    family = make(config)
    pixels, x = jnp.zeros((1, 3, 64, 64)), jnp.zeros((1, 8, 8, 32))
    for module, arg, part in (
        (family.embed, pixels, tree["embed"]),
        (family.block_at(0), x, tree["blocks"]["0"]),
        (family.block_at(1), x, tree["blocks"]["1"]),
        (family.head, x, tree["head"]),
    ):
        made = jax.eval_shape(module.init, jax.random.key(0), arg)["params"]
        assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, part)


# ---------------------------------------------------------------- names


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


def test_hugging_face_names_round_trip(models):
    config, _, model, _ = models("windows")
    tensors = tensors_of(model)
    tree = round_trip(config, tensors)
    for leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert leaf[0][-1].key != "kernel" or leaf[1].ndim == 2
    round_trip(config, {f"sam.{k}": v for k, v in tensors.items()})


def test_meta_names_round_trip_and_compute_the_same(models):
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


def test_config_of_meta_shapes(models):
    config, sam, model, _ = models("windows")
    tensors = meta_tensors(config, tensors_of(model))
    found = SamConfig.from_hf(config_of({k: v.shape for k, v in tensors.items()}))
    heads = replace(found.decoder, num_attention_heads=2, iou_head_hidden_dim=20)
    assert replace(found, decoder=heads) == sam
    with pytest.raises(ConversionError, match="Meta"):
        config_of({"model.decoder.embed_tokens.weight": (3, 4)})


@pytest.mark.parametrize("there", [(0, 1), (0,), (1,)])
def test_either_copy_of_the_frequencies_will_do(models, there):
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


def test_copies_of_the_frequencies_that_differ_stay_so(models):
    config, _, model, _ = models("windows")
    tensors = tensors_of(model)
    tensors["shared_image_embedding.positional_embedding"] = normal(2, 8)
    round_trip(config, tensors)


def test_bad_checkpoints_are_refused_by_name(models):
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


def test_written_names_are_those_of_transformers(models, tmp_path):
    from safetensors import safe_open

    config, _, model, _ = models("windows")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        names = list(file.keys())
    assert {p.name for p in TABLE.place(config)} == set(names)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_config", {"image_size": [64, 32]}, "one number"),
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


# ---------------------------------------------------------------- the real size


@pytest.mark.slow
def test_vit_b_at_full_size(capsys):
    """ViT-B, one image of 1024²: about 1.5 minutes on two CPU cores."""
    config = {"model_type": "sam", "vision_config": {}}
    sam = SamConfig.from_hf(config)
    model = torch_model(config)
    tree = tree_of(config, tensors_of(model))
    pixels = normal(1, 3, 1024, 1024)
    given = {
        "points": np.array([[[[500.0, 375.0]], [[100.0, 900.0]]]], np.float32),
        "labels": np.ones((1, 2, 1), np.int32),
    }
    blocks = []
    x = normal(1, 64, 64, 768)
    with torch.no_grad():
        for t in (0, 2):  # windowed, global
            ours = Block(sam.vision, sam.vision.window(t)).apply(
                {"params": tree["blocks"][str(t)]}, x
            )
            blocks.append(error(ours, model.vision_encoder.layers[t](torch.from_numpy(x))))
        start = time.perf_counter()
        image = model.get_image_embeddings(torch.from_numpy(pixels))
        seconds = [time.perf_counter() - start]
        theirs = {f"input_{k}": torch.from_numpy(v) for k, v in given.items()}
        out = model(image_embeddings=image, **theirs)
    for _ in range(2):
        start = time.perf_counter()
        ours = jax.block_until_ready(encode(sam, tree, pixels))
        seconds.append(time.perf_counter() - start)
    masks, scores = jax.jit(predict_masks, static_argnums=0)(sam, tree, ours, **given)
    found = {
        "blocks": max(blocks),
        "embedding": error(ours, image.permute(0, 2, 3, 1)),
        "masks": error(masks, out.pred_masks),
        "scores": error(scores, out.iou_scores),
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        print(f"\nViT-B: errors {found}; torch {seconds[0]:.1f} s, ours {seconds[2]:.1f} s")
        print(f"(first call {seconds[1]:.1f} s); peak memory of the process {peak:.2f} GiB")
    assert found["blocks"] <= BLOCK
    assert found["embedding"] <= EMBEDDING
    assert max(found["masks"], found["scores"]) <= MASKS
