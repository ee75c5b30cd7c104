"""The small trained SAM of the benchmarks: it segments scenes it has never seen, and pruning by
statistics keeps that where pruning by size does not.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

import icp_jax

pytest.importorskip("pycocotools", reason="needs pycocotools")
BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
MODEL = BENCHMARKS / "assets" / "sam-shapes"


@pytest.fixture(scope="module")
def shapes():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import sam_shapes
    finally:
        sys.path.remove(str(BENCHMARKS))
    return sam_shapes


def test_scenes_are_the_same_for_the_same_seed(shapes):
    (image, masks), (again, others) = shapes.scene(7), shapes.scene(7)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(masks, others)
    assert masks.sum(0).max() == 1  # what is visible belongs to one object
    assert masks.mean((1, 2)).min() >= shapes.LEAST
    assert not np.array_equal(image, shapes.scene(8)[0])


def test_it_segments_and_sparsegpt_keeps_it(shapes, tmp_path):
    held_out = shapes.write_folder(tmp_path / "held-out", shapes.HELD_OUT, 20)
    calibration = shapes.write_folder(tmp_path / "calibration", 0, 32)
    model = icp_jax.load(MODEL)
    pixels = icp_jax.calibrate(model, calibration, samples=32)
    found = {"dense": icp_jax.evaluate(model, f"sa1b:{held_out}").iou}
    for method in ("magnitude", "sparsegpt"):
        pruned, _ = icp_jax.prune(model, pixels, method=method, sparsity=0.9)
        found[method] = icp_jax.evaluate(pruned, f"sa1b:{held_out}").iou
    assert found["dense"] > 0.7
    assert found["magnitude"] + 0.1 < found["sparsegpt"] < found["dense"]
