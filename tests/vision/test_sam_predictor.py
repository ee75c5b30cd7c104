"""Images in and masks out, against transformers' processor, and the predictor's refusals."""

import jax
import numpy as np
import pytest

from converters.rules import insert
from converters.sam import TABLE
from icp_jax.errors import InputError
from icp_jax.models.sam import SamConfig, apply_sam
from icp_jax.vision import Frame, SamPredictor, postprocess, preprocess
from icp_jax.vision.process import binarise, load_image

Image = pytest.importorskip("PIL.Image")

CONFIG = {
    "model_type": "sam",
    "vision_config": {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 3,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
    },
    "prompt_encoder_config": {
        "hidden_size": 16,
        "image_size": 64,
        "patch_size": 8,
        "mask_input_channels": 8,
    },
    "mask_decoder_config": {
        "hidden_size": 16,
        "mlp_dim": 24,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    },
}
SIZES = [(40, 60), (60, 40), (64, 64), (200, 130), (7, 90)]


def picture(h, w, channels=3, seed=0):
    """Smooth noise, uint8."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, channels), np.uint8).squeeze())
    return np.array(small.resize((w, h), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def params():
    rng, tree = np.random.default_rng(0), {}
    for p in TABLE.place(CONFIG):
        scale = 1.0 if "positional" in p.name else 0.4 if len(p.shape) > 1 else 0.1
        leaf = scale * rng.normal(size=p.shape) + (p.path[-1] == "scale")
        insert(tree, p.path, p.to_tree(leaf.astype(np.float32)))
    return tree


@pytest.fixture(scope="module")
def predictor(params):
    made = SamPredictor(CONFIG, params)
    made.set_image(picture(48, 80))
    return made


# ---------------------------------------------------------------- against transformers


@pytest.fixture(scope="module")
def processor():
    pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.sam.image_processing_pil_sam")
    side = {"height": 64, "width": 64}
    return module.SamImageProcessorPil(size={"longest_edge": 64}, pad_size=side)


@pytest.mark.needs_torch
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_transformers(processor, size):
    image = picture(*size)
    theirs = processor(Image.fromarray(image), return_tensors="np")
    pixels, where = preprocess(image, 64)
    np.testing.assert_array_equal(pixels, theirs["pixel_values"][0])
    assert where.original == tuple(theirs["original_sizes"][0])
    assert where.resized == tuple(theirs["reshaped_input_sizes"][0])


@pytest.mark.needs_torch
@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_modes_are_converted_as_transformers_does(processor, mode):
    source = Image.fromarray(picture(40, 60, 4), "RGBA") if mode == "RGBA" else None
    image = source or Image.fromarray(picture(40, 60)).convert(mode)
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(preprocess(image, 64)[0], theirs)


@pytest.mark.needs_torch
@pytest.mark.parametrize("size", SIZES)
def test_masks_are_those_of_transformers(processor, size):
    torch = pytest.importorskip("torch")
    _, where = preprocess(picture(*size), 64)
    logits = np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32)
    (theirs,) = processor.post_process_masks(
        [torch.from_numpy(logits)], [where.original], [where.resized], binarize=False
    )
    ours = postprocess(logits, where)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    sure = np.abs(ours) > 1e-5
    np.testing.assert_array_equal(binarise(ours)[sure], (theirs.numpy() > 0)[sure])


@pytest.mark.needs_torch
def test_points_land_where_transformers_puts_them(processor):
    from transformers import SamProcessor

    whole = SamProcessor(processor)
    where = Frame((130, 200), (42, 64), 64)
    points = np.array([[12.0, 30.0], [199.0, 129.0]])
    theirs = whole._normalize_coordinates(64, points, where.original)
    np.testing.assert_allclose(points * where.scale, theirs, rtol=1e-12)


# ---------------------------------------------------------------- the predictor


def test_predict_is_the_model_on_the_frame(params, predictor):
    points, labels = np.array([[10.0, 20.0], [70.0, 5.0]]), np.array([1, 0])
    found = predictor.predict(points, labels)
    pixels, where = preprocess(picture(48, 80), 64)
    on_frame = (points * where.scale).astype(np.float32)[None, None]
    masks, scores = apply_sam(
        SamConfig.from_hf(CONFIG), params, pixels[None], on_frame, labels[None, None]
    )
    np.testing.assert_allclose(found.low_res, masks[0, 0], atol=1e-4)
    np.testing.assert_allclose(found.iou, scores[0, 0], atol=1e-4)
    assert found.masks.shape == (3, 48, 80) and found.masks.dtype == bool
    np.testing.assert_array_equal(found.masks, postprocess(found.low_res, where) > 0)
    assert predictor.predict(points, multimask=False).masks.shape == (1, 48, 80)


def test_prompts_together_equal_prompts_one_by_one(predictor, monkeypatch):
    rng = np.random.default_rng(2)
    points = rng.uniform(0, 48, (5, 2, 2))
    corners = np.sort(rng.uniform(0, 48, (5, 2, 2)), axis=1).reshape(5, 4)
    masks = rng.normal(size=(5, 32, 32))
    monkeypatch.setattr("icp_jax.vision.predictor.PROMPTS", 2)
    many = predictor.predict(points, boxes=corners, mask=masks)
    assert many.masks.shape == (5, 3, 48, 80) and many.iou.shape == (5, 3)
    for k in range(5):
        one = predictor.predict(points[k], boxes=corners[k], mask=masks[k])
        np.testing.assert_allclose(many.low_res[k], one.low_res, atol=1e-5)
        np.testing.assert_allclose(many.iou[k], one.iou, atol=1e-5)


def test_low_res_masks_are_prompts_again(predictor):
    first = predictor.predict([[10, 20]])
    again = predictor.predict([[10, 20]], mask=first.low_res[0], multimask=False)
    assert again.low_res.shape == (1, 32, 32)
    assert np.abs(again.low_res - first.low_res[:1]).max() > 1e-3


def test_half_precision_is_close(params, predictor):
    half = SamPredictor(CONFIG, params, dtype="bfloat16")
    half.set_image(picture(48, 80))
    close = half.predict([[10, 20]]).low_res - predictor.predict([[10, 20]]).low_res
    assert np.abs(close).max() < 0.1 * np.abs(predictor.predict([[10, 20]]).low_res).max()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), "must be uint8.*float32"),
        (np.zeros((4, 5, 3), np.uint16), "must be uint8.*uint16"),
        (np.zeros((3, 4, 5), np.uint8), r"not an image: array uint8\[3, 4, 5\]"),
        (np.zeros((4, 0, 3), np.uint8), "empty"),
        ("no/such.png", "no/such.png cannot be read"),
        (3, "not an image: int"),
        (None, "not an image: NoneType"),
        (object(), "not an image: object"),
        (np.zeros((1, 900, 3), np.uint8), "too narrow"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(InputError, match=message) as caught:
        preprocess(image, 64)
    assert "\n" not in str(caught.value)


def test_deep_images_and_files_that_are_none_are_refused(tmp_path):
    deep = Image.fromarray(np.full((4, 5), 40000, np.uint16))
    with pytest.raises(InputError, match="more than 8 bits"):
        load_image(deep)
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(InputError, match=r"a\.png is not an image"):
        load_image(tmp_path / "a.png")
    Image.fromarray(picture(40, 60)).save(tmp_path / "b.png")
    np.testing.assert_array_equal(load_image(tmp_path / "b.png"), picture(40, 60))
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"b\.png cannot be read"):
        load_image(str(tmp_path / "b.png"))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"points": [[81, 5]]}, r"point \(81, 5\) is outside the image of 80 by 48"),
        ({"points": [[5, -1]]}, "outside the image"),
        ({"points": [[5, float("nan")]]}, "finite"),
        ({"points": [5, 5]}, "points must have 2 or 3 axes"),
        ({"points": [[5, 5, 5]]}, "points must be"),
        ({"points": [[5, 5], [5]]}, "rectangular"),
        ({"points": [[5, 5]], "labels": [1, 1]}, "2 labels for 1 points"),
        ({"points": [[5, 5]], "labels": [2]}, "labels must be"),
        ({"labels": [1]}, "labels need points"),
        ({"boxes": [5, 5, 81, 20]}, "outside the image"),
        ({"boxes": [5, 5, 5, 20]}, "empty"),
        ({"boxes": [5, 5, 20]}, "boxes must be"),
        ({"mask": np.zeros((30, 32))}, "logits of 32 by 32 for this model, got 30 by 32"),
        ({"points": [[5, 5]], "boxes": [[5, 5, 9, 9]]}, "prompt axis, or none"),
        ({"points": [[[5, 5]]] * 2, "boxes": [[5, 5, 9, 9]]}, "number of prompts"),
        ({"boxes": np.zeros((0, 4))}, "the prompt axis is empty"),
    ],
)
def test_bad_prompts_are_refused(predictor, prompt, message):
    with pytest.raises(InputError, match=message):
        predictor.predict(**prompt)


def test_predict_before_an_image_is_refused(params):
    fresh = SamPredictor(CONFIG, params)
    with pytest.raises(InputError, match="set_image first"):
        fresh.predict([[1, 1]])
    fresh.set_image(picture(20, 20))
    before = fresh.embedding
    with pytest.raises(InputError):
        fresh.set_image("no/such.png")
    assert fresh.embedding is before
    assert isinstance(before, jax.Array)
