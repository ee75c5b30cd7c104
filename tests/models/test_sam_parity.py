"""SAM against transformers' torch classes, with random weights in every table, norm and bias."""

import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icp_jax.models.sam import SamConfig, encode_image, make, predict_masks
from icp_jax.models.sam.encoder import Block

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from sam_oracle import (  # noqa: E402
    VARIANTS,
    error,
    models,
    normal,
    prompts,
    tensors_of,
    torch_model,
    tree_of,
)

pytestmark = pytest.mark.needs_torch

encode = jax.jit(encode_image, static_argnums=0)  # the rest is op by op: less to compile

BLOCK, EMBEDDING, MASKS = 1e-5, 1e-4, 1e-3  # the largest absolute error allowed


# ---------------------------------------------------------------- the encoder


@pytest.mark.parametrize("name", VARIANTS)
def test_blocks_match(name):
    config, sam, model, tree = models(name)
    family, grid = make(config), sam.vision.grid
    x = normal(2, grid, grid, sam.vision.hidden_size)
    for t in range(family.n_blocks):
        ours = family.block_at(t).apply({"params": tree["blocks"][str(t)]}, x)
        theirs = model.vision_encoder.layers[t](torch.from_numpy(x))
        assert error(ours, theirs) <= BLOCK


@pytest.mark.parametrize("side", [5, 13])
def test_relative_positions_of_another_grid_are_interpolated(side):
    _, sam, model, tree = models("windows")
    x = normal(1, side, side, sam.vision.hidden_size)
    ours = Block(sam.vision, 0).apply({"params": tree["blocks"]["1"]}, x)
    assert error(ours, model.vision_encoder.layers[1](torch.from_numpy(x))) <= BLOCK


@pytest.mark.parametrize("scores", [1, 2 * 8**3, 2 * 8**4])  # a row of a head; rows; heads
def test_chunks_give_what_all_scores_at_once_give(monkeypatch, scores):
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
def test_image_embeddings_match(name):
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


def test_taps_are_the_inputs_of_the_linears():
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


def test_family_shares_one_module_among_like_blocks():
    config, *_ = models("windows")
    family = make(config)
    assert family.block_at(0) == family.block_at(2) != family.block_at(1)
    assert hash(family.block_at(0)) == hash(make(config).block_at(2))
    assert family.default_rearrangement == "qkv-f2"


# ---------------------------------------------------------------- prompts and masks


KINDS = "points unlabelled boxes points+boxes masks points+masks boxes+masks points+boxes+masks"


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", [*KINDS.split(), "nothing"])
def test_masks_and_scores_match(kind, multimask):
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


def test_a_mask_for_each_prompt_equals_one_prompt_at_a_time():
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
def test_half_precision_streams_stay_half_and_close(dtype):
    config, _, _, tree = models("windows")
    x = jnp.asarray(normal(1, 8, 8, 32))
    for t in (0, 1):
        module, params = make(config).block_at(t), {"params": tree["blocks"][str(t)]}
        y = module.apply(params, x.astype(dtype))
        assert y.dtype == dtype
        exact = module.apply(params, x)
        assert np.abs(y.astype(jnp.float32) - exact).max() < 0.03 * np.abs(exact).max()


def test_init_makes_the_tree_of_the_table():
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
