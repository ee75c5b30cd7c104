"""Forms of sparse tensors: exact, and as small as the formula says."""

import ml_dtypes
import numpy as np
import pytest
from packing import zeroed

from converters import packed_codec as codec
from converters import packed_forms as forms
from converters.rules import ConversionError

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
PATTERNS = [(1, 2), (1, 4), (2, 4), (3, 4), (1, 8), (4, 8), (7, 8)]


def there_and_back(tensor, form):
    words = codec.words_of(tensor)
    parts = codec.encode(words, form)
    sizes = forms.part_sizes(form, len(words), int(np.count_nonzero(words)))
    assert {name: len(part) for name, part in parts.items()} == sizes
    assert codec.decode(parts, form, len(words), tensor.dtype).tobytes() == tensor.tobytes()
    return parts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 1])
def test_a_bitmask_is_exact(dtype, sparsity):
    for shape in [(7, 13), (64, 48), (1, 1)]:
        tensor = zeroed(np.random.default_rng(0), shape, sparsity).astype(dtype)
        there_and_back(tensor, forms.BITMASK)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_a_pattern_is_exact(dtype, pattern):
    tensor = zeroed(np.random.default_rng(0), (37, 56), 0, pattern).astype(dtype)
    tensor[3:9] = 0  # groups of fewer than n
    form = f"{pattern[0]}:{pattern[1]}"
    there_and_back(tensor, form)
    assert codec.smallest(codec.words_of(tensor), 56)[0] in (form, forms.BITMASK, forms.PLAIN)


def test_more_than_one_chunk(monkeypatch):
    monkeypatch.setattr(codec, "CHUNK", 48)
    rng = np.random.default_rng(0)
    there_and_back(zeroed(rng, (31, 37), 0.7).astype(np.float16), forms.BITMASK)
    there_and_back(zeroed(rng, (31, 40), 0, (2, 4)).astype(np.float16), "2:4")
    there_and_back(zeroed(rng, (31, 40), 0, (4, 8)).astype(np.float16), "4:8")


def test_only_the_zero_of_all_bits_is_left_out():
    words = np.array([[0x8000, 0, 0x7C01, 0, 0xFE55, 0, 0, 1]] * 8, "<u2")
    parts = there_and_back(words.view(np.float16), forms.BITMASK)
    assert len(parts[forms.NONZEROS]) == 8 * 4


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_the_size_is_that_of_the_formula(dtype, sparsity):
    tensor = zeroed(np.random.default_rng(0), (256, 512), sparsity).astype(dtype)
    form, nonzeros = codec.smallest(codec.words_of(tensor), 512)
    nbytes = forms.packed_bytes(form, tensor.size, nonzeros, tensor.dtype.itemsize)
    bits = 8 * tensor.dtype.itemsize
    assert form == forms.BITMASK
    assert 8 * nbytes / tensor.size == pytest.approx(1 + bits * (1 - sparsity), rel=1e-4)


@pytest.mark.parametrize("pattern,bits", [((2, 4), 8 + 2 / 3), ((4, 8), 8.8), ((1, 4), 4.5)])
def test_a_pattern_is_smaller_than_a_bitmask(pattern, bits):
    tensor = zeroed(np.random.default_rng(0), (256, 512), 0, pattern).astype(np.float16)
    form, nonzeros = codec.smallest(codec.words_of(tensor), 512)
    assert form == f"{pattern[0]}:{pattern[1]}"
    nbytes = forms.packed_bytes(form, tensor.size, nonzeros, 2)
    assert 8 * nbytes / tensor.size == pytest.approx(bits, rel=1e-3)


def test_a_pattern_with_more_zeros_is_a_bitmask():
    tensor = zeroed(np.random.default_rng(0), (64, 64), 0, (2, 4)).astype(np.float16)
    tensor[::2] = 0
    assert codec.smallest(codec.words_of(tensor), 64)[0] == forms.BITMASK


def test_a_dense_tensor_stays_plain():
    tensor = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float16)
    assert codec.smallest(codec.words_of(tensor), 64)[0] == forms.PLAIN


@pytest.mark.parametrize("form", ["2:3", "4:4", "8:8", "0:4", "12:16", "packed", ""])
def test_an_unknown_form_is_refused(form):
    with pytest.raises(ConversionError, match="unknown form"):
        forms.parse_form(form)


def wrong_parts():
    tensor = zeroed(np.random.default_rng(0), (6, 12), 0.5).astype(np.float16)
    tensor[-1, -1] = 1
    mask = codec.encode(codec.words_of(tensor), forms.BITMASK)
    tensor = zeroed(np.random.default_rng(0), (6, 12), 0, (2, 4)).astype(np.float16)
    codes = codec.encode(codec.words_of(tensor), "2:4")
    flipped = mask[forms.MASK].copy()
    flipped[2] ^= 1
    high = codes[forms.CODES].copy()
    high[-1] = 255
    return [
        (mask | {forms.MASK: flipped}, "bitmask", 72),
        (mask | {forms.NONZEROS: mask[forms.NONZEROS][:-1]}, "bitmask", 72),
        (mask, "bitmask", 71),
        (mask, "bitmask", 80),
        (codes | {forms.CODES: high}, "2:4", 72),
        (codes | {forms.NONZEROS: codes[forms.NONZEROS][:-1]}, "2:4", 72),
        (codes, "2:4", 74),
        (codes, "bitmask", 72),
    ]


@pytest.mark.parametrize("case", range(len(wrong_parts())))
def test_parts_that_disagree_are_refused(case):
    parts, form, size = wrong_parts()[case]
    with pytest.raises(ConversionError):
        codec.decode(parts, form, size, np.dtype("<u2"))
