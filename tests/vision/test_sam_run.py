"""SAM from folder to folder and from Meta's file to Meta's file: what changes and what does not."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from vision import small_sam

import icp_jax
from icp_jax import CalibrationConfig, CompensateConfig, PruneConfig, RunConfig
from icp_jax.cli import main
from icp_jax.runs.run import dry_run, prune_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model folder and a folder of images. Tests leave both as they are."""
    folder = tmp_path_factory.mktemp("sam")
    small_sam.write_sam(folder / "model", np.float16)
    small_sam.write_images(folder / "images")
    return folder


def config_for(model, out, data, **prune):
    tuning = CompensateConfig(epochs=2, lr=1e-3)
    return RunConfig(
        model=str(model),
        out=str(out),
        prune=PruneConfig(**{"sparsity": 0.5, **prune}),
        compensate=tuning if prune.get("method", "icp") == "icp" else CompensateConfig(),
        calibration=CalibrationConfig(str(data), samples=4),
    )


def untouched(before, after, blocks, kernels):
    """Everything outside the encoder's blocks, and block 0 but for its kernels."""
    for name, old in before.items():
        in_block = f".{blocks}." in name and name.startswith(("vision_", "image_"))
        first = f".{blocks}.0." in name and not name.endswith(kernels)
        assert (after[name].shape, after[name].dtype) == (old.shape, old.dtype)
        if not in_block or first:
            assert after[name].tobytes() == old.tobytes(), name


KERNELS = ("qkv.weight", "proj.weight", "lin1.weight", "lin2.weight")


@pytest.mark.parametrize("method", ["icp", "magnitude"])
def test_folder_to_folder(place, tmp_path, method):
    done = prune_folder(
        config_for(place / "model", tmp_path / "out", place / "images", method=method)
    )
    before = load_file(place / "model" / "model.safetensors")
    after = load_file(done.out / "model.safetensors")
    assert list(before) == list(after)
    untouched(before, after, "layers", KERNELS)
    pruned = [n for n in before if n.startswith("vision_encoder.layers.") and n.endswith(KERNELS)]
    zeros, size = (sum(f(after[n]) for n in pruned) for f in (lambda t: (t == 0).sum(), np.size))
    assert len(pruned) == 12 and zeros / size == done.sparsity == pytest.approx(0.5, abs=1e-3)
    changed = [n for n in before if before[n].tobytes() != after[n].tobytes()]
    assert any("layers.1.attn.rel_pos_h" in n for n in changed) == (method == "icp")
    assert {p.name for p in done.out.iterdir()} == {
        "config.json", "preprocessor_config.json", "model.safetensors", "icp_run.json",
        "report.html",
    }  # fmt: skip
    record = json.loads((done.out / "icp_run.json").read_text())
    assert record["inputs"]["calibration_shape"] == [4, 3, 64, 64]
    assert list(record["inputs"]["weights"]) == ["model.safetensors"]
    facts = icp_jax.verify(done.out, place / "model")
    assert sorted(layer["name"] for layer in facts["layers"]) == sorted(pruned)
    assert facts["sparsity"] == done.sparsity and facts["missing"] == facts["added"] == []


def test_compensation_lowers_the_loss(place, tmp_path):
    done = prune_folder(config_for(place / "model", tmp_path / "out", place / "images"))
    losses = [block.compensation for block in done.blocks[1:]]
    assert all(loss.after < loss.before for loss in losses)


@pytest.mark.needs_torch
def test_transformers_loads_it_and_agrees(place, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import SamModel

    out = prune_folder(config_for(place / "model", tmp_path / "out", place / "images")).out
    theirs = SamModel.from_pretrained(out, dtype=torch.float32).eval()
    pixels = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        want = theirs.get_image_embeddings(torch.from_numpy(pixels)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(icp_jax.load(out).logits(pixels), want, atol=1e-4)


@pytest.mark.needs_torch
@pytest.mark.parametrize("inside", [False, True])
def test_a_pth_file_comes_back_as_one(place, tmp_path, inside):
    torch = pytest.importorskip("torch")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "unrelated.txt").write_text("the user's own")
    source = small_sam.write_meta(tmp_path / "meta" / "sam_small.pth", np.float16)
    model = tmp_path / "meta" if inside else source
    done = prune_folder(config_for(model, tmp_path / "out", place / "images"))
    names = {"sam_small.pth", "icp_run.json", "report.html"}
    names |= {"unrelated.txt"} if inside else set()
    assert {p.name for p in done.out.iterdir()} == names
    before, after = (
        {k: v.numpy() for k, v in torch.load(p, weights_only=True).items()}
        for p in (source, done.out / "sam_small.pth")
    )
    assert list(before) == list(after)
    untouched(before, after, "blocks", KERNELS)
    # the same weights in Hugging Face's names are pruned to the same bits
    other = prune_folder(config_for(place / "model", tmp_path / "hf", place / "images")).out
    theirs = load_file(other / "model.safetensors")
    for name, hugging_face in small_sam.meta_names().items():
        assert after[name].tobytes() == theirs[hugging_face].tobytes(), name
    assert icp_jax.verify(done.out, source)["sparsity"] == done.sparsity
    assert icp_jax.verify(done.out / "sam_small.pth")["zeros"] > 0


@pytest.mark.needs_torch
def test_a_pth_file_through_orbax_and_memory(place, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    source = small_sam.write_meta(tmp_path / "sam.pth", np.float16)
    assert main(["convert", str(source), str(tmp_path / "orbax")]) == 0
    assert main(["convert", str(tmp_path / "orbax"), str(tmp_path / "back")]) == 0
    assert "folder with sam.pth" in capsys.readouterr().out
    saved = icp_jax.save(icp_jax.load(source), tmp_path / "saved")
    want = torch.load(source, weights_only=True)
    for folder in (tmp_path / "back", saved):
        assert [p.name for p in folder.iterdir()] == ["sam.pth"]
        found = torch.load(folder / "sam.pth", weights_only=True)
        assert list(found) == list(want)
        assert all(torch.equal(found[k], want[k]) for k in want)


def test_a_folder_through_orbax(place, tmp_path):
    assert main(["convert", str(place / "model"), str(tmp_path / "orbax")]) == 0
    assert main(["convert", str(tmp_path / "orbax"), str(tmp_path / "back")]) == 0
    for path in (place / "model").iterdir():
        assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes()


def test_memory_and_folder_give_the_same_bytes(place, tmp_path):
    config = config_for(place / "model", tmp_path / "a", place / "images")
    first = prune_folder(config).out
    model = icp_jax.load(place / "model")
    pixels = icp_jax.calibrate(model, place / "images", samples=4)
    assert pixels.shape == (4, 3, 64, 64) and pixels.dtype == np.float32
    pruned, _ = icp_jax.prune(model, pixels, config.prune, config.compensate)
    second = icp_jax.save(pruned, tmp_path / "b")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_a_dry_run_and_its_defaults(place):
    config = config_for(place / "model", "", place / "images", sparsity=0.6)
    found = dry_run(config)
    assert found.zeros == round(0.6 * found.size) and found.kind == "vision"
    by_block = {b: [r for r in found.layers if r["block"] == b] for b in range(3)}
    assert [r["role"] for r in by_block[0]] == ["qkv", "o", "f1", "f2"]
    for b, rows in by_block.items():  # α is 0.85: the last block has less; β is 0: layers alike
        share = 0.6 * 0.85 if b == 2 else 0.6 + 0.15 * 0.6 / 2
        assert all(r["sparsity"] == pytest.approx(share, abs=3e-3) for r in rows)
    moved = dry_run(config_for(place / "model", "", place / "images", beta=0.2)).layers
    qkv, f2 = (next(r["sparsity"] for r in moved if r["role"] == role) for role in ("qkv", "f2"))
    assert qkv < 0.5 < f2
    uniform = dry_run(
        config_for(place / "model", "", place / "images", method="wanda", sparsity=0.6)
    )
    # 8 × 8 patches in windows of 3 × 3, block 1 whole: q·k and the weighted sum, 2 flops each
    forward = 2 * 64 * (found.size + 2 * (9 + 64 + 9) * 16)
    moments = 64 * 3 * (3 * 16**2 + 32**2)
    # as they are reported: a product each and lin2's energy, half of them by symmetry
    errors = 3 * (16**2 * (48 + 16 + 32) + 2 * 32**2 * 16)
    left_out = 3 * 2 * 64 * 32 * 16  # lin2, by the statistics
    assert uniform.flops == 4 * (3 * forward - left_out + moments) + errors


def test_calibration_from_every_kind_of_folder(place, tmp_path):
    pytest.importorskip("pycocotools")
    model = icp_jax.load(place / "model")
    small_sam.write_sa1b(tmp_path / "sa1b")
    small_sam.write_coco(tmp_path / "coco", split="val2017", count=1)
    small_sam.write_coco(tmp_path / "coco", split="train2017")
    want = icp_jax.calibrate(model, place / "images", samples=3, seed=5)
    for data in ("sa1b:{}/sa1b", "{}/sa1b", "coco:{}/coco", "{}/coco"):
        got = icp_jax.calibrate(model, data.format(tmp_path), samples=3, seed=5)
        np.testing.assert_array_equal(got, want)
    other = icp_jax.calibrate(model, place / "images", samples=3, seed=6)
    assert not np.array_equal(other, want)


@pytest.mark.parametrize("pixels", [np.zeros((2, 3, 64, 32), np.float32), np.zeros((2, 64), int)])
def test_samples_of_another_shape_are_refused(place, pixels):
    with pytest.raises(icp_jax.InputError, match=r"normalised floats \[N, 3, 64, 64\]"):
        icp_jax.prune(icp_jax.load(place / "model"), pixels)
