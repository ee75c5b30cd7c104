"""Annotations: masks checked before pycocotools has them, crowds, and what cannot be used."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from vision import small_sam

import icp_jax
from icp_jax.cli import main
from icp_jax.vision.annotated import load
from icp_jax.vision.annotated_masks import Unusable, decode

coder = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")
H, W = 48, 60


def text_of(mask) -> str:
    return coder.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def runs_of(mask) -> list[int]:
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask.ravel(order="F")[-1]]])
    return np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()


MASK = small_sam.scene(0)[1][1]
TEXT, RUNS = text_of(MASK), runs_of(MASK)


# ---------------------------------------------------------------- masks alone


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_run_lengths_of_both_kinds_are_the_mask(seed, h, w, share):
    rng = np.random.default_rng(seed)
    mask = np.repeat(rng.random((h, w)) < share, rng.integers(1, 9), axis=0)[:h]
    for counts in (text_of(mask), text_of(mask).encode(), runs_of(mask)):
        code = {"size": [h, w], "counts": counts}
        if mask.any():
            np.testing.assert_array_equal(decode(coder, code, (h, w)), mask)
        else:
            with pytest.raises(Unusable, match="has an empty mask"):
                decode(coder, code, (h, w))


@given(st.one_of(st.text(max_size=30), st.text(st.characters(min_codepoint=48, max_codepoint=111))))
def test_any_text_is_a_mask_of_written_memory_or_refused(text):
    """What pycocotools writes back of a mask are the runs that were given."""
    try:
        mask = decode(coder, {"size": [3, 2], "counts": text}, (3, 2))
    except Unusable:
        return
    again = coder.decode({"size": [3, 2], "counts": text.encode()})
    assert mask.shape == (3, 2) and mask.any()
    np.testing.assert_array_equal(mask, again)


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.9])
def test_a_text_cut_anywhere_is_refused(share):
    with pytest.raises(Unusable, match="are truncated|run lengths of|negative"):
        decode(coder, {"size": [H, W], "counts": TEXT[: int(share * len(TEXT))] or "0"}, (H, W))


UNUSABLE = {  # segmentation -> what is said of it
    "none": (None, "has no mask"),
    "no polygon": ([], "has no mask"),
    "an empty polygon": ([[]], "polygon with fewer than three points"),
    "two points": ([[30, 20, 60, 40]], "polygon with fewer than three points"),
    "two points, flat": ([30, 20, 60, 40], "polygon with fewer than three points"),
    "half a point": ([[1, 1, 9, 1, 9, 9, 1]], "odd number of values"),
    "a good and a bad polygon": ([[1, 1, 9, 1, 9, 9], [1, 1, 9, 9]], "fewer than three points"),
    "points in pairs": ([[[1, 1], [9, 1], [9, 9]]], "not a list of numbers"),
    "words": ([["a", "b", "c", "d", "e", "f"]], "not a list of numbers"),
    "NaN": ([[1, 1, 9, math.nan, 9, 9]], "far outside"),
    "infinity": ([[1, 1, 9, math.inf, 9, 9]], "far outside"),
    "far away": ([[1, 1, 1e9, 1, 9, 9]], "far outside"),
    "no area": ([[10, 10, 10, 10, 10, 10]], "has an empty mask"),
    "a word": ("circle", "cannot be read: it is a str"),
    "a number": (7, "cannot be read: it is a int"),
    "no size": ({"counts": TEXT}, "without a mask size"),
    "a size of one": ({"size": [H], "counts": TEXT}, "without a mask size"),
    "a size of words": ({"size": ["48", "60"], "counts": TEXT}, "without a mask size"),
    "a turned size": (
        {"size": [W, H], "counts": TEXT},
        "mask of 48 by 60, but the image is 60 by 48",
    ),
    "no counts": ({"size": [H, W]}, "not integers"),
    "no runs": ({"size": [H, W], "counts": []}, "run lengths of 0 pixels"),
    "no text": ({"size": [H, W], "counts": ""}, "are truncated"),
    "one run less": (
        {"size": [H, W], "counts": RUNS[:-1]},
        "run lengths of .* but the image has 2880",
    ),
    "a run more": ({"size": [H, W], "counts": [*RUNS, 5]}, "run lengths of 2885 pixels"),
    "a run below zero": ({"size": [H, W], "counts": [-5, H * W + 5]}, "longer than the image"),
    "runs below zero": ({"size": [H, W], "counts": [-5, 5, H * W]}, "negative"),
    "runs that wrap": ({"size": [H, W], "counts": [2**32, H * W]}, "longer than the image"),
    "a run out of range": ({"size": [H, W], "counts": [2**80]}, "not integers"),
    "half a run": ({"size": [H, W], "counts": [0.5, H * W - 0.5]}, "not integers"),
    "NaN for a run": ({"size": [H, W], "counts": [math.nan, H * W]}, "not integers"),
    "runs in words": ({"size": [H, W], "counts": ["1", "2"]}, "not integers"),
    "runs in lists": ({"size": [H, W], "counts": [[1], [2, 3]]}, "not integers"),
    "other characters": ({"size": [H, W], "counts": "!" + TEXT}, "invalid characters"),
    "letters of no code": ({"size": [1, 15], "counts": "\u6f22"}, "invalid characters"),
    "half a character": ({"size": [1, 15], "counts": "\ud83d"}, "invalid characters"),
    "a text too long": ({"size": [H, W], "counts": "o" * 9 + "0"}, "longer than any image"),
    "an empty mask": ({"size": [H, W], "counts": [H * W]}, "has an empty mask"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_masks_that_cannot_be_used(what):
    segmentation, message = UNUSABLE[what]
    size = (1, 15) if "[1, 15]" in str(segmentation) else (H, W)
    with pytest.raises(Unusable, match=message) as caught:
        decode(coder, segmentation, size)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_polygon_may_reach_over_the_edge_and_need_not_be_nested():
    square = [-3, -3, 20, -3, 20, 20, -3, 20]
    nested, flat = (decode(coder, given, (H, W)) for given in ([square], square))
    np.testing.assert_array_equal(nested, flat)
    assert nested[:20, :20].all() and nested.sum() == 400


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return icp_jax.load(small_sam.write_sam(tmp_path_factory.mktemp("sam") / "model"))


def coco(folder, change, count=2):
    """A COCO folder of two objects an image, with `change` applied to its record."""
    small_sam.write_coco(folder, count)
    path = folder / "annotations" / "instances_val2017.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return f"coco:{folder}"


def first(**changes):
    """A change of the first annotation; None removes a key."""

    def change(record):
        row = record["annotations"][0]
        row |= changes
        record["annotations"][0] = {k: v for k, v in row.items() if v is not None}

    return change


def replace(row):
    return lambda record: record["annotations"].__setitem__(0, row)


LEFT_OUT = {  # change, prompt, what is said
    "a mask that breaks off": (
        first(segmentation={"size": [H, W], "counts": TEXT[:5]}), "point", "annotation 0 has"),
    "no mask": (first(segmentation=None), "point", "0.png: annotation 0 has no mask"),
    "no box": (first(bbox=None), "box", "0.png: annotation 0 has no box inside the image"),
    "a box of three": (first(bbox=[1, 2, 3]), "box", "has no box"),
    "a box of words": (first(bbox=["1", "2", "3", "4"]), "box", "has no box"),
    "a box of NaN": (first(bbox=[math.nan, 2, 3, 4]), "box", "has no box"),
    "a box without width": (first(bbox=[1, 2, 0, 4]), "box", "has no box"),
    "a box outside": (first(bbox=[70, 5, 9, 9]), "box", "has no box inside the image"),
    "no object at all": (replace(None), "point", "annotation at place 0 has an unknown image_id"),
    "a list": (replace([1]), "box", "annotation at place 0 has an unknown image_id"),
    "an image that is not there": (first(image_id=7), "point", "annotation 0 has an unknown image"),
    "an image id that is a list": (first(image_id=[7]), "point", "0 has an unknown image_id"),
    "a polygon on another size": (
        lambda r: (first(segmentation=[[1, 1, 9, 1, 9, 9]])(r), r["images"][0].update(width=30)),
        "point", "annotation 0 is for an image of 30 by 48, but the image is 60 by 48"),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT_OUT)
def test_an_annotation_that_cannot_be_used_is_left_out(model, tmp_path, what):
    change, prompt, said = LEFT_OUT[what]
    found = icp_jax.evaluate(model, coco(tmp_path / "bad", change), prompt=prompt)
    without = coco(tmp_path / "without", lambda r: r["annotations"].pop(0))
    want = icp_jax.evaluate(model, without, prompt=prompt)
    assert (found.left_out, found.masks, found.iou) == (1, 3, want.iou)
    assert len(found.unusable) == 1 and said in found.unusable[0]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("point_coords", None, "has no point inside the image"),
        ("point_coords", [[61, 5]], "has no point inside the image"),
        ("point_coords", [[5, "x"]], "has no point"),
        ("point_coords", 5, "has no point"),
        ("segmentation", "circle", "has a mask that cannot be read"),
        ("segmentation", {"size": [60, 48], "counts": "0"}, "48 by 60, but the image is 60 by 48"),
    ],
)
def test_an_annotation_of_sa1b_is_left_out(model, tmp_path, key, value, said):
    folder = small_sam.write_sa1b(tmp_path / "sa1b", 2)
    record = json.loads((folder / "1.json").read_text())
    record["annotations"][0][key] = value
    (folder / "1.json").write_text(json.dumps(record))
    found = icp_jax.evaluate(model, f"sa1b:{folder}")
    assert (found.left_out, found.masks, found.images) == (1, 3, 2)
    assert found.unusable[0].startswith("1.png: annotation 10 ") and said in found.unusable[0]


@pytest.mark.parametrize(
    ("prompt", "changes"),
    [("point", {"bbox": None}), ("point", {"bbox": "x"}), ("point", {"id": None})],
)
def test_what_a_prompt_does_not_need_may_be_absent(model, tmp_path, prompt, changes):
    whole = icp_jax.evaluate(model, coco(tmp_path / "whole", lambda r: None), prompt=prompt)
    found = icp_jax.evaluate(model, coco(tmp_path / "less", first(**changes)), prompt=prompt)
    assert found == whole


def test_an_image_without_an_object_that_can_be_used_is_passed_over(tmp_path, capsys):
    folder = small_sam.write_sam(tmp_path / "model")
    spoil = lambda r: [row.update(segmentation=[[]]) for row in r["annotations"][:2]]  # noqa: E731
    data = coco(tmp_path / "coco", spoil)
    assert main(["eval", str(folder), "--data", data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["masks"], found["left_out"]) == (1, 2, 2)
    assert [line.split(" has ")[0] for line in found["unusable"]] == [
        "0.png: annotation 0", "0.png: annotation 1"
    ]  # fmt: skip
    assert main(["eval", str(folder), "--data", data]) == 0
    said = "2 invalid annotations skipped; the first: 0.png: annotation 0"
    assert said in capsys.readouterr().out


def test_crowds_are_no_objects(model, tmp_path):
    def change(record):
        record["annotations"][0]["iscrowd"] = 1
        record["annotations"][1]["iscrowd"] = 0
        for row in record["annotations"][2:4]:  # an image of crowds alone
            row["iscrowd"] = 1

    found = icp_jax.evaluate(model, coco(tmp_path / "crowds", change, count=3))
    single = coco(
        tmp_path / "single",
        lambda r: r.update(annotations=[r["annotations"][k] for k in (1, 4, 5)]),
        count=3,
    )
    want = icp_jax.evaluate(model, single)
    assert (found.crowds, found.left_out, found.masks, found.images) == (3, 0, 3, 2)
    assert found == want._replace(crowds=3)


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("upright", [True, False])
def test_masks_lie_on_the_image_as_it_was_annotated(tmp_path, upright, stated):
    """Annotations are of the image as it is seen, or of its pixels as they are stored."""
    seen, masks = small_sam.scene(0)  # 60 by 48
    folder = small_sam.write_coco(tmp_path / "coco", 1)
    image = Image.fromarray(seen)
    exif = image.getexif()
    exif[0x0112] = 6 if upright else 8
    stored = image.transpose(Image.Transpose.ROTATE_90) if upright else image
    stored.save(folder / "val2017" / "0.png", exif=exif)
    if not stated:
        path = folder / "annotations" / "instances_val2017.json"
        record = json.loads(path.read_text())
        record["images"][0] = {"id": 100, "file_name": "0.png"}
        path.write_text(json.dumps(record))
    (objects,) = load(f"coco:{folder}").objects
    np.testing.assert_array_equal(objects.image, seen)
    np.testing.assert_array_equal(objects.masks, masks)
