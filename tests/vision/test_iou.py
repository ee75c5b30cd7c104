"""IoU by the paper's protocol: against pycocotools' own, a brute-force loop, and by its seeds."""

import json

import numpy as np
import pytest
from PIL import Image
from vision import small_sam

import icp_jax
from icp_jax.cli import main
from icp_jax.errors import InputError
from icp_jax.evaluation.iou import measures
from icp_jax.vision import SamPredictor
from icp_jax.vision.annotated import load

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
coder = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("iou")
    small_sam.write_sam(folder / "model")
    small_sam.write_sa1b(folder / "sa1b")
    small_sam.write_coco(folder / "coco")
    return folder


def test_measures_are_those_of_pycocotools_and_of_counting():
    rng = np.random.default_rng(0)
    truth, found = rng.random((2, 6, 13, 17)) < 0.4
    found[3], found[4] = truth[3], False
    ours = measures(truth, found)
    codes = [
        coder.encode(np.asfortranarray(m.transpose(1, 2, 0).astype(np.uint8)))
        for m in (found, truth)
    ]
    np.testing.assert_allclose(ours[:, 0], np.diag(coder.iou(*codes, [0] * 6)), rtol=1e-12)
    for row, t, f in zip(ours, truth, found, strict=True):
        hits, extra, missed = (t & f).sum(), (f & ~t).sum(), (t & ~f).sum()
        assert row[1] == pytest.approx((t == f).mean())
        assert row[2] == pytest.approx(hits / max(hits + extra, 1))
        assert row[3] == pytest.approx(hits / (hits + missed))
        assert row[4] == pytest.approx(2 * hits / (2 * hits + extra + missed))
    assert ours[3].tolist() == [1] * 5 and ours[4, [0, 2, 3, 4]].tolist() == [0] * 4


@pytest.mark.parametrize("prompt", ["point", "box"])
def test_the_candidate_rated_highest_is_compared(place, prompt):
    model = icp_jax.load(place / "model")
    found = icp_jax.evaluate(model, f"sa1b:{place}/sa1b", prompt=prompt)
    predictor, ious, rated = SamPredictor(model.config, model.params), [], set()
    for k in range(4):
        image, masks = small_sam.scene(k)
        predictor.set_image(image)
        rows = json.loads((place / "sa1b" / f"{k}.json").read_text())["annotations"]
        for row, mask in zip(rows, masks, strict=True):
            left, top, w, h = row["bbox"]
            given = {"boxes": [left, top, left + w, top + h]}
            if prompt == "point":
                given = {"points": row["point_coords"]}
            out = predictor.predict(**given)
            best = int(np.argmax(out.iou))
            rated.add(best)
            ious.append((out.masks[best] & mask).sum() / (out.masks[best] | mask).sum())
    assert found.iou == pytest.approx(np.mean(ious), rel=1e-6)
    assert (found.masks, found.images, found.prompt) == (8, 4, prompt)
    folder = icp_jax.evaluate(place / "model", f"sa1b:{place}/sa1b", prompt=prompt)
    assert folder == found


def test_coco_and_sa1b_agree_on_the_same_objects(place):
    ours = [list(load(f"{kind}:{place}/{kind}").objects) for kind in ("sa1b", "coco")]
    for a, b in zip(*ours, strict=True):
        np.testing.assert_array_equal(a.masks, b.masks)
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.masks, small_sam.scene(int(a.name[0]))[1])


def test_drawn_points_lie_inside_and_follow_the_seed(place):
    def points(seed, limit=None):
        found = list(load(f"coco:{place}/coco", limit, seed).objects)
        for objects in found:
            for (x, y), mask in zip(objects.points.astype(int), objects.masks, strict=True):
                assert mask[y, x]
        return np.concatenate([objects.points for objects in found])

    assert np.array_equal(points(0), points(0)) and not np.array_equal(points(0), points(1))
    assert np.array_equal(points(3, limit=2), points(3)[:4])  # whatever the limit


def test_polygons_are_masks_too(place, tmp_path):
    folder = small_sam.write_coco(tmp_path / "coco", count=1)
    path = folder / "annotations" / "instances_val2017.json"
    record = json.loads(path.read_text())
    record["annotations"][0]["segmentation"] = [
        [10, 10, 30, 10, 30, 20, 10, 20],
        [40, 30, 50, 30, 50, 40],
    ]
    path.write_text(json.dumps(record))
    mask = next(load(f"coco:{folder}").objects).masks[0]
    assert mask[10:20, 10:30].all() and mask[31, 48] and not mask[25, 30]
    assert abs(mask.sum() - 250) < 25


def test_the_command_line(place, capsys):
    data = f"coco:{place}/coco"
    assert main(["eval", str(place / "model"), "--data", data, "--limit", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert set(found) == {
        "iou", "pixel_accuracy", "precision", "recall", "f1", "masks", "images", "prompt",
        "crowds", "left_out", "unusable",
    }  # fmt: skip
    assert (found["crowds"], found["left_out"], found["unusable"]) == (0, 0, [])
    assert found["images"] == 2 and found["masks"] == 4 and "images" in err
    assert main(["eval", str(place / "model"), "--data", data, "--prompt", "box"]) == 0
    out = capsys.readouterr().out
    assert "on 4 images, one box per mask" in out and "F1" in out


def test_segment_paints_the_mask(place, tmp_path, capsys):
    image, model = place / "sa1b" / "0.png", str(place / "model")
    args = ["segment", model, str(image), "--out", str(tmp_path / "a.png")]
    assert main([*args, "--point", "12,10", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    before = np.asarray(Image.open(image)).astype(int)
    after = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    tree = icp_jax.load(model)
    predictor = SamPredictor(tree.config, tree.params)
    predictor.set_image(image)
    want = predictor.predict([[12, 10]])
    best = int(np.argmax(want.iou))
    assert record["area"] == want.masks[best].sum()
    assert record["predicted_iou"] == pytest.approx(float(want.iou[best]))
    far = np.hypot(*(np.indices(before.shape[:2]) - np.array([10, 12])[:, None, None])) > 4
    same = (before == after).all(2)
    assert same[far & ~want.masks[best]].all()
    assert not same[far & want.masks[best]].all() or not want.masks[best][far].any()
    args[-1] = str(tmp_path / "b.jpg")
    assert main([*args, "--box", "4,5,25,20"]) == 0
    assert "predicted IoU" in capsys.readouterr().out and (tmp_path / "b.jpg").is_file()


def test_without_pycocotools_it_says_so(place, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(InputError, match=r"pip install 'icp-jax\[coco\]'"):
        load(f"coco:{place}/coco")
