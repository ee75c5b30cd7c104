"""What a checkpoint says of its images is followed as transformers does, or refused in a line."""

import json

import ml_dtypes
import numpy as np
import pytest
from PIL import Image
from vision import small_sam

import icp_jax
from icp_jax.cli import main
from icp_jax.errors import InputError
from icp_jax.streaming.source import FolderSource
from icp_jax.vision import SamPredictor, postprocess, preprocess
from icp_jax.vision.image_settings import ImageSettings, image_settings, of_source

SIDE = small_sam.SIDE
SIZES = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
HALF = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}
IMAGE = small_sam.scene(3)[0]
RECORDS = {
    "nothing but sizes": {},
    "mean and std": HALF,
    "one number for all": {"image_mean": 0.5, "image_std": 0.25},
    "not normalised, by null": {"do_normalize": None},
    "not rescaled, by null": {"do_rescale": None},
    "not resized, by null": {"do_resize": None},
    "a smaller image": {"size": {"longest_edge": 40}, **HALF},
    "another factor": {
        "rescale_factor": 1 / 127.5,
        "image_mean": [1.0] * 3,
        "image_std": [1.0] * 3,
    },
    "not rescaled": {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 50, 55]},
    "not normalised": {"do_normalize": False, **HALF},
    "neither": {"do_normalize": False, "do_rescale": False},
    "not resized": {"do_resize": False},
    "nearest": {"resample": 0},
    "Lanczos": {"resample": 1},
    "bicubic": {"resample": 3},
    "a side for the padding": {"pad_size": SIDE},
}


def folder_of(path, record, name="preprocessor_config.json"):
    small_sam.write_sam(path)
    (path / "preprocessor_config.json").unlink()
    (path / name).write_text(json.dumps(record))
    return path


def theirs(record):
    pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.sam.image_processing_pil_sam")
    return module.SamImageProcessorPil(**record)


@pytest.mark.needs_torch
@pytest.mark.parametrize("what", RECORDS)
def test_pixels_and_masks_are_those_of_transformers(tmp_path, what):
    torch = pytest.importorskip("torch")
    record = {**SIZES, **RECORDS[what]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
    processor = theirs(record)
    want = processor(Image.fromarray(IMAGE), return_tensors="np")
    pixels, where = preprocess(IMAGE, image_settings(SIDE, tmp_path))
    np.testing.assert_array_equal(pixels, want["pixel_values"][0])
    assert where.resized == tuple(want["reshaped_input_sizes"][0])
    logits = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)
    (masks,) = processor.post_process_masks(
        [torch.from_numpy(logits)], [where.original], [where.resized], binarize=False
    )
    np.testing.assert_allclose(postprocess(logits, where), masks, atol=1e-5)


@pytest.mark.needs_torch
@pytest.mark.parametrize("what", ["mean and std", "a smaller image"])
def test_the_predictor_of_a_model_is_transformers_whole(tmp_path, what):
    """Processor, points and model: the logits that a user of transformers gets."""
    torch = pytest.importorskip("torch")
    from transformers import SamModel, SamProcessor

    record = {**SIZES, **RECORDS[what]}
    folder = folder_of(tmp_path / "model", record)
    processor = SamProcessor(theirs(record))
    given = processor(Image.fromarray(IMAGE), input_points=[[[20, 30]]], return_tensors="pt")
    with torch.no_grad():
        out = SamModel.from_pretrained(folder, dtype=torch.float32)(
            pixel_values=given["pixel_values"], input_points=given["input_points"].float()
        )
    predictor = SamPredictor(icp_jax.load(folder))
    predictor.set_image(IMAGE)
    found = predictor.predict([[20, 30]])
    np.testing.assert_allclose(found.low_res, out.pred_masks.numpy()[0, 0], atol=1e-4)
    np.testing.assert_allclose(found.iou, out.iou_scores.numpy()[0, 0], atol=1e-4)


def low_res(predictor):
    predictor.set_image(IMAGE)
    return predictor.predict([[20, 30]]).low_res


def test_every_way_to_a_predictor(tmp_path):
    """A model, an open folder, a model with other params; and a config with params as before."""
    model = icp_jax.load(folder_of(tmp_path / "own", {**SIZES, **HALF}))
    plain = icp_jax.load(small_sam.write_sam(tmp_path / "plain"))
    want, default = low_res(SamPredictor(model)), low_res(SamPredictor(plain))
    assert np.abs(want - default).max() > 1e-2
    source = FolderSource(tmp_path / "own")
    settings = of_source(source)
    for predictor in (
        SamPredictor(source),
        SamPredictor(model, dtype="float32"),
        SamPredictor(model, plain.params),
        SamPredictor(config=plain.config, params=plain.params, settings=settings),
    ):
        np.testing.assert_array_equal(low_res(predictor), want)
    source.close()
    for args in ((model.config, model.params), (model.config, model.params, "float32")):
        np.testing.assert_array_equal(low_res(SamPredictor(*args)), default)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("model",), "takes a Model, or a config and params, got 'model'"),
        ((small_sam.CONFIG,), "a config needs params"),
        (({"model_type": "opt"}, {}), "'opt' is not supported"),
    ],
)
def test_what_is_no_model_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        SamPredictor(*given)


def test_calibration_evaluation_and_segment_follow_it(tmp_path, capsys):
    """A folder whose pixels are normalised otherwise, and one by hand."""
    own = folder_of(tmp_path / "own", {**SIZES, **HALF})
    images = small_sam.write_images(tmp_path / "images")
    pixels = icp_jax.calibrate(icp_jax.load(own), images, samples=4)
    how = ImageSettings(SIDE, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
    for k, found in enumerate(pixels):
        np.testing.assert_array_equal(found, preprocess(images / f"{k}.png", how)[0])
    args = ["--data", str(images), "--samples", "4"]
    args += ["--method", "magnitude", "--json"]
    digests = []
    for name, folder in (("a", own), ("b", small_sam.write_sam(tmp_path / "plain"))):
        assert main(["prune", str(folder), str(tmp_path / name), *args]) == 0
        record = json.loads((tmp_path / name / "icp_run.json").read_text())
        digests.append(record["inputs"]["calibration_images"])
    assert digests[0] == icp_jax.data.inputs.record(FolderSource(own), pixels)["calibration_images"]
    assert digests[0] != digests[1]
    before = (own / "preprocessor_config.json").read_bytes()
    assert (tmp_path / "a" / "preprocessor_config.json").read_bytes() == before
    capsys.readouterr()
    point = ["--point", "20,30", "--json"]
    assert (
        main(["segment", str(own), str(images / "3.png"), "--out", f"{tmp_path}/s.png", *point])
        == 0
    )
    predictor = SamPredictor(icp_jax.load(own))
    predictor.set_image(images / "3.png")
    want = predictor.predict([[20, 30]], best=True).iou[0]
    assert json.loads(capsys.readouterr().out)["predicted_iou"] == pytest.approx(float(want))


def test_evaluation_follows_it(tmp_path):
    pytest.importorskip("pycocotools")
    own = folder_of(tmp_path / "own", {**SIZES, **HALF})
    data = f"sa1b:{small_sam.write_sa1b(tmp_path / 'sa1b')}"
    in_memory, in_folder = icp_jax.evaluate(icp_jax.load(own), data), icp_jax.evaluate(own, data)
    plain = icp_jax.evaluate(small_sam.write_sam(tmp_path / "plain"), data)
    assert in_memory == in_folder and in_memory.iou != plain.iou


def test_the_processor_of_a_whole_pipeline_comes_first(tmp_path):
    """As transformers reads it, with a byte-order mark or without."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.1}))
    whole, nested = tmp_path / "processor_config.json", {"image_processor": HALF}
    assert image_settings(SIDE, tmp_path).mean == (0.1, 0.1, 0.1)
    whole.write_text(json.dumps({"processor_class": "SamProcessor"}))
    assert image_settings(SIDE, tmp_path).mean == (0.1, 0.1, 0.1)
    whole.write_text(json.dumps(nested), encoding="utf-8-sig")
    assert image_settings(SIDE, tmp_path).mean == (0.5, 0.4, 0.3)


def test_a_null_that_transformers_refuses_is_as_if_not_there(tmp_path):
    keys = ("image_mean", "image_std", "resample", "rescale_factor", "size", "pad_size")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(dict.fromkeys(keys)))
    assert image_settings(SIDE, tmp_path) == ImageSettings(SIDE)


REFUSED = {
    "size": [1024, {"shortest_edge": SIDE}, {"longest_edge": 65}, {"longest_edge": 0}, [64]],
    "pad_size": [1024, {"height": SIDE}, {"height": SIDE, "width": 32}, "64"],
    "image_mean": [[0.5], [0.5, 0.5, "x"], "0.5", [0.5, 0.5, float("nan")], True],
    "image_std": [[0.5, 0, 0.5], 0, -1, [1, 2, 3, 4]],
    "rescale_factor": [0, "1/255", float("inf")],
    "resample": [6, -1, 2.0, "bilinear", True],
    "do_resize": ["yes", 1],
    "do_pad": [False, None, 0],
    "do_center_crop": [True],
    "do_normalize": ["false"],
}


@pytest.mark.parametrize("key, value", [(k, v) for k, values in REFUSED.items() for v in values])
def test_what_cannot_be_followed_is_refused(tmp_path, key, value):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(InputError, match=rf"preprocessor_config\.json: {key} must be") as caught:
        image_settings(SIDE, tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_files_that_are_no_json_object_are_refused(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(InputError, match="cannot be read as JSON|not a JSON object"):
        image_settings(SIDE, tmp_path)


def test_an_image_that_is_not_resized_must_fit(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"do_resize": false}')
    with pytest.raises(InputError, match="80 by 20 pixels exceeds the model's 64 by 64"):
        preprocess(np.zeros((20, 80, 3), np.uint8), image_settings(SIDE, tmp_path))


# ---------------------------------------------------------------- Meta's files

META = {"pixel_mean": [120.0, 110.0, 100.0], "pixel_std": [60.0, 50.0, 55.0]}


@pytest.mark.needs_torch
@pytest.mark.parametrize("names", [("pixel_mean", "pixel_std"), ("pixel_mean",), ("pixel_std",)])
def test_mean_and_std_of_a_pth_file_are_followed(tmp_path, names):
    """By Meta's own formula, on pixels from 0 to 255; and they come back out."""
    torch = pytest.importorskip("torch")
    pixels = {name: META[name] for name in names}
    path = small_sam.write_meta(tmp_path / "sam.pth", **pixels)
    mean = np.array(pixels.get("pixel_mean", [123.675, 116.28, 103.53]))
    std = np.array(pixels.get("pixel_std", [58.395, 57.12, 57.375]))
    model = icp_jax.load(path)
    source = FolderSource(path)
    (tmp_path / "images").mkdir()
    square = small_sam.scene(0, SIDE, SIDE)[0]
    Image.fromarray(square).save(tmp_path / "images" / "a.png")
    for each in (model, source):
        found = icp_jax.calibrate(each, tmp_path / "images", samples=1)[0]
        np.testing.assert_allclose(found, ((square - mean) / std).transpose(2, 0, 1), rtol=1e-5)
    source.close()
    ways = (SamPredictor(model), SamPredictor(model.config, model.params))
    np.testing.assert_array_equal(*map(low_res, ways))
    out = icp_jax.save(model, tmp_path / "out") / "sam.pth"
    state = torch.load(out, weights_only=True)
    assert {n: v.ravel().tolist() for n, v in state.items() if "pixel" in n} == pixels


@pytest.mark.needs_torch
def test_metas_own_numbers_are_the_default(tmp_path):
    own = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}
    told = icp_jax.load(small_sam.write_meta(tmp_path / "told.pth", **own))
    untold = icp_jax.load(small_sam.write_meta(tmp_path / "untold.pth"))
    np.testing.assert_allclose(*(low_res(SamPredictor(m)) for m in (told, untold)), atol=1e-4)


def pixels_of(mean, std):
    return {"pixel_mean": np.reshape(mean, (3, 1, 1)), "pixel_std": np.reshape(std, (3, 1, 1))}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_mean_and_std_in_any_dtype(dtype):
    found = image_settings(SIDE, None, {"pixel_mean": np.full((3, 1, 1), 120, dtype)})
    assert (found.mean, found.scale) == ((120.0,) * 3, 1.0)


def test_a_model_whose_folder_is_gone_is_refused(tmp_path):
    """Its settings may have been others than SAM's own."""
    model = icp_jax.load(small_sam.write_sam(tmp_path / "model"))
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="model does not exist"):
        SamPredictor(model)
    low_res(SamPredictor(model, settings=ImageSettings(SIDE)))


def test_file_and_checkpoint_must_agree(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF))
    mean, std = (np.multiply(HALF[k], 255) for k in ("image_mean", "image_std"))
    same = image_settings(SIDE, tmp_path, pixels_of(mean, std))
    assert same == image_settings(SIDE, tmp_path)
    with pytest.raises(InputError, match="pixel_std differ: delete one of the two"):
        image_settings(SIDE, tmp_path, pixels_of(mean, 2 * std))
    for broken in (pixels_of(mean, 0 * std), pixels_of(np.nan * mean, std)):
        with pytest.raises(InputError, match="pixel_mean and pixel_std must have three numbers"):
            image_settings(SIDE, None, broken)
