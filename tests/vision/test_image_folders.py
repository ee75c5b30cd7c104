"""Folders as they come from cameras and systems: turned photographs, hidden files, other files."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from vision import small_sam

import icp_jax
from icp_jax.cli import main
from icp_jax.errors import InputError
from icp_jax.vision.folders import image_files
from icp_jax.vision.process import load_image

SEEN = small_sam.scene(0)[0]
STORED = {  # EXIF orientation -> the pixels that a camera stores of what is seen
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def photograph(orientation):
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](SEEN)))
    exif = image.getexif()
    exif[0x0112] = orientation
    return image, exif


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_photograph_stands_upright(tmp_path, orientation, suffix):
    image, exif = photograph(orientation)
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(load_image(path), SEEN)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(load_image(opened), SEEN)
    if suffix == "png":
        stored = load_image(path, upright=False)
        np.testing.assert_array_equal(stored, STORED[orientation](SEEN))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01", b"nothing"])
def test_damaged_exif_data_is_not_in_the_way(tmp_path, exif):
    path = tmp_path / "a.png"
    Image.fromarray(SEEN).save(path, exif=exif)
    np.testing.assert_array_equal(load_image(path), SEEN)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp"])
def test_a_file_that_breaks_off_is_one_line(tmp_path, suffix):
    """Without a warning; a file that lacks its last bytes alone may still be whole."""
    path = tmp_path / f"a.{suffix}"
    photograph(1)[0].save(path)
    whole = path.read_bytes()
    for length in range(0, 3 * len(whole) // 4, max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"a\.{suffix} (is not an image|cannot be read)"):
            load_image(path)


def test_segment_takes_points_as_they_are_seen_and_paints_upright(tmp_path, capsys):
    model = small_sam.write_sam(tmp_path / "model")
    image, exif = photograph(6)
    image.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(SEEN).save(tmp_path / "upright.png")
    painted, records = [], []
    for name in ("turned", "upright"):
        out = tmp_path / f"{name}-out.png"
        args = ["segment", str(model), str(tmp_path / f"{name}.png"), "--out", str(out)]
        assert main([*args, "--point", "55,40", "--json"]) == 0
        records.append(json.loads(capsys.readouterr().out) | {"out": ""})
        with Image.open(out) as opened:
            painted.append(np.asarray(opened))
            assert opened.getexif().get(0x0112, 1) == 1
    assert records[0] == records[1]
    np.testing.assert_array_equal(*painted)


# ---------------------------------------------------------------- what is no image


@pytest.fixture
def folder(tmp_path):
    images = small_sam.write_images(tmp_path / "images", 5)
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "README.txt", "notes.json", ".hidden.jpg"):
        (images / name).write_bytes(b"\0\5")
    (images / "0.json").write_text("{}")  # SA-1B's, of 0.png
    (images / "more.png").mkdir()
    (images / "gone.png").symlink_to("nowhere.png")
    return images


def test_hidden_and_other_files_are_no_images(folder):
    listed = image_files(folder)
    assert [p.name for p in listed.images] == [f"{k}.png" for k in range(5)]
    assert listed.others == [
        ".DS_Store", "._0.png", ".hidden.jpg", "README.txt", "Thumbs.db", "gone.png", "notes.json"
    ]  # fmt: skip
    assert listed.said().startswith(
        "7 files skipped, hidden or not images: .DS_Store, ._0.png, .hidden"
    )
    assert image_files(small_sam.write_images(folder / "clean")).said() == ""


def test_they_change_no_calibration_set_and_are_counted(folder, tmp_path, caplog):
    model = icp_jax.load(small_sam.write_sam(tmp_path / "model"))
    with caplog.at_level(logging.WARNING, "icp_jax"):
        found = icp_jax.calibrate(model, folder, samples=3)
    assert [f"{folder}: 7 files skipped" in r.getMessage() for r in caplog.records] == [True]
    clean = small_sam.write_images(tmp_path / "clean", 5)
    caplog.clear()
    np.testing.assert_array_equal(found, icp_jax.calibrate(model, clean, samples=3))
    assert not caplog.records


def test_a_file_that_is_no_image_gives_its_place_to_the_next(tmp_path, caplog):
    """Whatever its name: the others are drawn as before."""
    model = icp_jax.load(small_sam.write_sam(tmp_path / "model"))
    images = small_sam.write_images(tmp_path / "images", 5)
    order = np.random.default_rng(0).permutation(5)
    before = icp_jax.calibrate(model, images, samples=3)
    all_five = icp_jax.calibrate(model, images, samples=5)
    gone, slot = order[1], sorted(order[:3]).index(order[1])
    (images / f"{gone}.png").write_text("<html>404</html>")
    found = icp_jax.calibrate(model, images, samples=3)
    before[slot] = all_five[order[3]]
    np.testing.assert_array_equal(found, before)
    assert f"1 files skipped, hidden or not images: {gone}.png" in caplog.text
    with pytest.raises(
        InputError, match=rf"has 4 images, but 5 are asked for.*{gone}\.png is not an"
    ):
        icp_jax.calibrate(model, images, samples=5)


def test_files_beside_the_images_of_sa1b(tmp_path, caplog):
    pytest.importorskip("pycocotools")
    model = icp_jax.load(small_sam.write_sam(tmp_path / "model"))
    sa1b = small_sam.write_sa1b(tmp_path / "sa1b", 2)
    want = icp_jax.evaluate(model, f"sa1b:{sa1b}")
    assert not caplog.records
    for name in ("._0.png", "._0.json", ".DS_Store"):
        (sa1b / name).write_bytes(b"\0\5")
    assert icp_jax.evaluate(model, f"sa1b:{sa1b}") == want
    assert "3 files skipped, hidden or not images: .DS_Store, ._0.json, ._0.png" in caplog.text
