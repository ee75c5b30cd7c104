"""Bad images, annotations and prompts: one line, status 2, nothing written."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from runs import placed
from vision import small_sam

from icp_jax.cli import main


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    pytest.importorskip("pycocotools", reason="needs pycocotools")
    folder = tmp_path_factory.mktemp("bad")
    small_sam.write_sam(folder / "model")
    small_sam.write_sa1b(folder / "sa1b", 3)
    small_sam.write_coco(folder / "coco", 3)
    return folder


@pytest.fixture
def place(source, tmp_path):
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    (tmp_path / "work").mkdir()
    return tmp_path


def edit(name, change):
    """A JSON file with `change` applied to its content."""

    def spoil(place):
        path = place / name
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return spoil


def save(name, image):
    return lambda place: image.save(place / name)


def write(name, text):
    return lambda place: (place / name).write_text(text)


def remove(*names):
    return lambda place: [(place / name).unlink() for name in names]


COCO = "coco/annotations/instances_val2017.json"
DEEP = Image.fromarray(np.full((48, 60), 40000, np.uint16))
NONE = lambda place: None  # noqa: E731
PRUNE = ["prune", "model", "work/out", "--data", "sa1b:sa1b",
         "--samples", "3", "--sparsity", ".5"]  # fmt: skip
EVAL = ["eval", "model", "--data"]
SEGMENT = ["segment", "model", "sa1b/0.png", "--out", "work/out.png"]
CASES = {
    "prune: not an image": (write("sa1b/1.png", "text"), PRUNE, r"has 2 images, but 3 .*1\.png is not an image"),
    "prune: a 16-bit image": (save("sa1b/1.png", DEEP), PRUNE, r"1\.png.*more than 8 bits"),
    "prune: too few images": (
        NONE, [*PRUNE, "--samples", "9"], "has 3 images, but 9 are asked"),
    "prune: sizes of another model": (
        write("model/preprocessor_config.json", '{"size": {"longest_edge": 1024}}'), PRUNE,
        r"preprocessor_config\.json: size must be a longest_edge from 1 to the model's 64, got"),
    "prune: no such folder": (
        NONE, [*PRUNE, "--data", "coco:nowhere"], "no image folder 'nowhere'"),
    "prune: hidden files are no images": (
        lambda p: (p / "sa1b/1.png").rename(p / "sa1b/._1.png"), PRUNE,
        "has 2 images, but 3 are asked.*2 files skipped, hidden or not images: ._1.png, 1.json$"),
    "prune: a folder without images": (
        NONE, [*PRUNE, "--data", "model"], "model has no images"),
    "prune: text for images": (
        NONE, [*PRUNE, "--data", "wikitext2"], "reads images, not wikitext2"),
    "prune: the data set of text that is the default": (
        NONE, [*PRUNE, "--data", "c4"], "reads images, not c4"),
    "prune: a window of tokens": (
        NONE, [*PRUNE, "--seq-len", "8"], "--seq-len is for text"),
    "prune: packed": (
        NONE, [*PRUNE, "--bits", "4", "--quant.packed"], "--quant.packed is for language models"),
    "prune: no COCO": (
        NONE, [*PRUNE, "--data", "coco:sa1b"], "is not a COCO folder"),
    "eval: not an image": (write("sa1b/1.png", "text"), [*EVAL, "sa1b:sa1b"], "is not an image"),
    "eval: a 16-bit image": (save("coco/val2017/1.png", DEEP), [*EVAL, "coco:coco"], "1.png.*8 bits"),
    "eval: a missing image": (remove("coco/val2017/1.png"), [*EVAL, "coco:coco"], "1.png cannot be"),
    "eval: no json beside": (remove("sa1b/2.json"), [*EVAL, "sa1b:sa1b"], "no 2.json next to it"),
    "eval: json that is none": (write("sa1b/2.json", "{"), [*EVAL, "sa1b:sa1b"], "2.json cannot be read as JSON"),
    "eval: json of another kind": (write("sa1b/2.json", "{}"), [*EVAL, "sa1b:sa1b"], "no list of anno"),
    "eval: COCO of another kind": (write(COCO, '{"images": []}'), [*EVAL, "coco:coco"], "COCO's format"),
    "eval: zero annotations, COCO": (
        edit(COCO, lambda r: r["annotations"].clear()), [*EVAL, "coco:coco"], "has no annotations"),
    "eval: zero annotations, SA-1B": (
        lambda p: [edit(f"sa1b/{k}.json", lambda r: r["annotations"].clear())(p) for k in range(3)],
        [*EVAL, "sa1b:sa1b"], "has no annotations"),
    "eval: a name that leaves the folder": (
        edit(COCO, lambda r: r["images"][0].update(file_name="../../sa1b/0.png")),
        [*EVAL, "coco:coco"], "names the file '../../sa1b/0.png', which leaves the folder"),
    "eval: crowds alone": (
        edit(COCO, lambda r: [row.update(iscrowd=1) for row in r["annotations"]]),
        [*EVAL, "coco:coco"], "has no annotations except 6 crowds"),
    "eval: no annotation that can be used": (
        edit(COCO, lambda r: [row.update(segmentation=[[]]) for row in r["annotations"]]),
        [*EVAL, "coco:coco"], "none of 6 annotations is usable; the first: 0.png: annotation 0"),
    "eval: limit of zero": (NONE, [*EVAL, "sa1b:sa1b", "--limit", "0"], "limit must be at least 1"),
    "eval: another prompt": (NONE, [*EVAL, "sa1b:sa1b", "--prompt", "text"], "invalid choice 'text'"),
    "eval: a plain folder": (NONE, [*EVAL, "coco/val2017"], "no .*json next to it"),
    "segment: settings that cannot be followed": (
        write("model/preprocessor_config.json", '{"image_std": 0}'), [*SEGMENT, "--point", "1,1"],
        r"image_std must be one number or three, above 0, got 0"),
    "segment: a point outside": (NONE, [*SEGMENT, "--point", "61,5"], "outside the image of 60 by 48"),
    "segment: a box outside": (NONE, [*SEGMENT, "--box", "1,1,99,9"], "outside the image of 60 by 48"),
    "segment: half a point": (NONE, [*SEGMENT, "--point", "61"], "--point takes x,y, got '61'"),
    "segment: half a box": (NONE, [*SEGMENT, "--box", "1,2,3"], "--box takes x0,y0,x1,y1"),
    "segment: no prompt": (NONE, SEGMENT, "give --point x,y or --box"),
    "segment: no such image": (
        NONE, ["segment", "model", "no.png", "--out", "work/o.png", "--point", "1,1"], "no.png cannot"),
    "segment: a 16-bit image": (save("sa1b/0.png", DEEP), [*SEGMENT, "--point", "1,1"], "8 bits"),
    "segment: output of no kind": (
        NONE, [*SEGMENT, "--point", "1,1", "--out", "work/a.txt"], "unknown image suffix"),
    "segment: output exists": (write("work/out.png", ""), [*SEGMENT, "--point", "1,1"], "exists already"),
    "segment: no folder": (NONE, [*SEGMENT, "--point", "1,1", "--out", "a/b.png"], "does not exist"),
    "SAM 2 by its config": (
        edit("model/config.json", lambda r: r.update(model_type="sam2_video")), PRUNE,
        "'sam2_video' is not supported; supported: .*sam"),
    "a file of another kind": (write("model.txt", ""), [*PRUNE, "--model", "model.txt"], "is a file"),
}  # fmt: skip


def run(place, capsys, monkeypatch, args, message):
    monkeypatch.chdir(place)
    before = sorted((place / "work").rglob("*"))
    status = main(placed(args))
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("icp-jax: ")]
    others = [
        line for line in err.splitlines() if not line.startswith(("icp-jax: ", "block ", "images"))
    ]
    assert (status, len(lines), others, out) == (2, 1, [], ""), err
    assert re.search(message, lines[0]), lines[0]
    assert sorted((place / "work").rglob("*")) == before


@pytest.mark.parametrize("case", CASES)
def test_bad_input(place, capsys, monkeypatch, case):
    spoil, args, message = CASES[case]
    spoil(place)
    run(place, capsys, monkeypatch, args, message)


def test_a_cmyk_image_is_an_image(place):
    """Converted as Pillow does it, and measured like any other."""
    Image.open(place / "sa1b" / "0.png").convert("CMYK").save(place / "sa1b" / "0.tif")
    (place / "sa1b" / "0.png").unlink()
    assert main(["eval", str(place / "model"), "--data", f"sa1b:{place}/sa1b"]) == 0


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"model": {"image_encoder.trunk.pos_embed": 0}}, "is a SAM 2 checkpoint"),
        ({"image_encoder.trunk.pos_embed": 0}, "is a SAM 2 checkpoint"),
        ({"model": {"image_encoder.pos_embed": 0}, "epoch": 3}, "is not a flat dict of tensors"),
        ({"fc.weight": 0}, "not a SAM checkpoint of Meta's"),
        (None, "cannot be read"),
    ],
)
def test_other_pth_files(place, capsys, monkeypatch, state, message):
    torch = pytest.importorskip("torch")

    def filled(node):
        if isinstance(node, dict):
            return {k: v if k == "epoch" else filled(v) for k, v in node.items()}
        return torch.zeros(1, 4, 4, 8)

    path = place / "other.pth"
    path.write_bytes(b"nothing") if state is None else torch.save(filled(state), path)
    run(place, capsys, monkeypatch, [*PRUNE, "--model", "other.pth"], message)


@pytest.mark.needs_torch
def test_a_pth_file_that_lacks_a_tensor(place, capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    path = small_sam.write_meta(place / "sam.pth")
    state = torch.load(path, weights_only=True)
    del state["image_encoder.blocks.1.mlp.lin2.bias"]
    torch.save(state, path)
    run(place, capsys, monkeypatch, [*PRUNE, "--model", "sam.pth"], r"missing.*1\.mlp\.lin2\.bias")


def test_without_torch_a_pth_file_says_so(place, capsys, monkeypatch):
    import sys

    (place / "sam.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    message = r"sam\.pth needs torch to be read: pip install 'icp-jax\[torch\]'"
    run(place, capsys, monkeypatch, [*PRUNE, "--model", "sam.pth"], message)
