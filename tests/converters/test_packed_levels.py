"""Non-zeros as integers: exact on a grid, rounded off it."""

import ml_dtypes
import numpy as np
import pytest
from packing import zeroed

from converters import packed_codec as codec
from converters import packed_forms as forms
from converters.packed_levels import encode_levels, fitting

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32]


def on_grid(rng, shape, bits, group, dtype, symmetric=False):
    """Pruned weights on grids, as the export writes them: the product in float32, rounded."""
    groups = (shape[0], shape[1] // group)
    scale = (0.01 * (0.5 + rng.random(groups))).astype(dtype)
    zero = np.full(groups, 2 ** (bits - 1)) if symmetric else rng.integers(0, 2**bits, groups)
    level = rng.integers(0, 2**bits, shape)
    level = np.where(rng.random(shape) < 0.7, np.repeat(zero, group, axis=1), level)
    steps = (level - np.repeat(zero, group, axis=1)).astype(np.float32)
    return (steps * np.repeat(scale, group, axis=1).astype(np.float32)).astype(dtype)


def back(matrix, form, exact):
    parts = encode_levels(matrix, form, exact)
    sizes = forms.part_sizes(form.form, matrix.size, int(np.count_nonzero(matrix)))
    assert {name: len(part) for name, part in parts.items()} == sizes
    return codec.decode(parts, form.form, matrix.size, matrix.dtype).reshape(matrix.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group,symmetric", [(256, False), (128, True), (64, False), (32, False)])
def test_weights_on_a_grid_are_exact(dtype, bits, group, symmetric):
    rng = np.random.default_rng(0)
    matrix = on_grid(rng, (12, 256), bits, group, dtype, symmetric)
    matrix[3] = 0
    form, exact = fitting(matrix, bits)
    assert exact and form.bits == bits and form.group == group
    assert back(matrix, form, exact).tobytes() == matrix.tobytes()


def test_a_grid_of_fewer_bits_fits_more():
    matrix = on_grid(np.random.default_rng(0), (12, 256), 4, 128, np.float16)
    form, exact = fitting(matrix, 8)
    assert exact and back(matrix, form, exact).tobytes() == matrix.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_off_a_grid_are_rounded(dtype, bits):
    matrix = zeroed(np.random.default_rng(0), (12, 256), 0.7).astype(dtype)
    form, exact = fitting(matrix, bits)
    assert not exact and form == (bits, 128)
    found = back(matrix, form, exact)
    assert not found[matrix == 0].any()
    groups = matrix.astype(np.float64).reshape(-1, 128)
    step = np.ptp(groups, axis=1) / (2**bits - 1)
    error = np.abs(found.astype(np.float64).reshape(-1, 128) - groups).max(axis=1)
    assert np.all(error <= (1.01 if dtype != ml_dtypes.bfloat16 else 2) * step)


def test_minus_zero_is_on_no_grid():
    matrix = on_grid(np.random.default_rng(0), (12, 256), 4, 128, np.float16)
    matrix[5, 7] = -0.0
    assert not fitting(matrix, 4)[1]


def test_a_row_of_odd_length():
    matrix = on_grid(np.random.default_rng(0), (5, 77), 4, 77, np.float16)
    form, exact = fitting(matrix, 4)
    assert exact and form.group == 77
    assert back(matrix, form, exact).tobytes() == matrix.tobytes()
