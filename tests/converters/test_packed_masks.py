"""Deflated bitmasks: where they are worth it, and no memory beyond what the shape promises."""

import tracemalloc
import zlib

import ml_dtypes
import numpy as np
import pytest
from packing import NAME, files, redescribed, write_pruned, zeroed

import icp_jax
from converters import packed_codec as codec
from converters import packed_masks as masks
from converters.files import open_checkpoint
from converters.rules import ConversionError

WIDE = {"hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 512}


def mask_of(sparsity, shape=(256, 512)):
    return codec.bitmask(zeroed(np.random.default_rng(0), shape, sparsity).reshape(-1))


@pytest.mark.parametrize("sparsity,bits", [(0.5, None), (0.6, None), (0.8, 0.73), (0.9, 0.49)])
def test_it_is_deflated_where_it_is_worth_it(sparsity, bits):
    mask = mask_of(sparsity)
    stream = masks.deflated(mask, round(16 * len(mask) * (1 - sparsity)))
    assert (stream is None) == (bits is None)
    if stream is not None:
        assert len(stream) / len(mask) == pytest.approx(bits, abs=0.01)
        assert masks.inflated(stream, len(mask)).tobytes() == mask.tobytes()
        assert zlib.decompress(stream) == mask.tobytes()


def test_a_small_file_stays_a_small_tensor():
    mask = np.zeros(1 << 20, np.uint8)
    assert masks.deflated(mask, 0) is None
    assert masks.deflated(mask, len(mask) // 16) is not None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_files_come_back(tmp_path, dtype):
    source = write_pruned(tmp_path / "m", dtype, 0.9, **WIDE)
    record = icp_jax.pack(source, tmp_path / "p")
    icp_jax.unpack(tmp_path / "p", tmp_path / "u")
    assert files(tmp_path / "u") == files(source)
    width = 8 * np.dtype(dtype).itemsize
    for layer in record["layers"]:
        assert layer["bits_per_weight"] == pytest.approx(0.49 + width * 0.1, abs=0.04)
    held = open_checkpoint(tmp_path / "p").packed["model.safetensors"]
    assert sum("deflated" in stored.parts for stored in held.stored.values()) == 18
    redescribed(tmp_path / "p", lambda told: told.update(version=1))
    with pytest.raises(ConversionError, match="contradicts its description"):
        open_checkpoint(tmp_path / "p")


def test_version_1_is_read_and_written_where_nothing_is_deflated(tmp_path, monkeypatch):
    source = write_pruned(tmp_path / "m", sparsity=0.9, **WIDE)
    monkeypatch.setattr(masks, "GAIN", 1)
    icp_jax.pack(source, tmp_path / "p")
    monkeypatch.undo()
    assert b'\\"version\\":1,' in (tmp_path / "p" / NAME).read_bytes()
    icp_jax.unpack(tmp_path / "p", tmp_path / "u")
    assert files(tmp_path / "u") == files(source)
    icp_jax.pack(source, tmp_path / "q")
    assert b'\\"version\\":2,' in (tmp_path / "q" / NAME).read_bytes()


def test_wrong_streams_are_refused():
    mask = mask_of(0.9)
    good = masks.deflated(mask, 0).tobytes()
    other = zlib.compress(mask.tobytes()[:-1])
    wrong = [b"", good[:-1], good[:50], good + b"\0", good + good, other, b"\0" * 99, good[2:-4]]
    for stream in wrong:
        with pytest.raises(ConversionError, match=r"^its bitmask .*[^\n]$"):
            masks.inflated(np.frombuffer(stream, np.uint8), len(mask))
    for count in (0, 1, len(mask) - 1, len(mask) + 1, 1 << 40):
        with pytest.raises(ConversionError, match="another length"):
            masks.inflated(np.frombuffer(good, np.uint8), count)


def test_no_memory_beyond_what_the_shape_promises():
    bomb = np.frombuffer(zlib.compress(bytes(1 << 28), 9), np.uint8)
    tracemalloc.start()
    with pytest.raises(ConversionError, match="another length"):
        masks.inflated(bomb, 1000)
    assert tracemalloc.get_traced_memory()[1] < 2 * len(bomb)
    tracemalloc.stop()


@pytest.mark.parametrize("count", [300, pytest.param(100_000, marks=pytest.mark.slow)])
def test_changed_streams(count):
    """Without their checksum: an error of one line, or a bitmask of the right length."""
    rng, mask = np.random.default_rng(0), mask_of(0.9, (64, 64))
    good = bytearray(masks.deflated(mask, 0))
    refused = 0
    for _ in range(count):
        stream = bytearray(good)
        for _ in range(1 + rng.integers(4)):
            stream[int(rng.integers(len(stream)))] ^= 1 << int(rng.integers(8))
        try:
            assert len(masks.inflated(np.frombuffer(stream, np.uint8), len(mask))) == len(mask)
        except ConversionError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
    assert refused > 0.9 * count
