"""Exports for MACKO, read by a decoder that follows its layout."""

import json

import numpy as np
import pytest
from conftest import write_llama
from packing import zeroed

import icp_jax
from converters.files import open_checkpoint
from converters.safetensors_files import Writer
from icp_jax.cli import main
from icp_jax.runs.macko import compressed


def decoded(values, deltas, indices, rows, columns):
    """The matrix, entry by entry: skip `delta` zeros, then take the value."""
    out = np.zeros((rows, columns), np.float16)
    for row in range(rows):
        at = -1
        for k in range(indices[row], indices[row + 1]):
            at += 1 + (int(deltas[k // 2]) >> 4 * (k % 2) & 15)
            out[row, at] = values[k]
    return out


@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 0.99, 1])
@pytest.mark.parametrize("shape", [(1, 1), (5, 16), (7, 17), (9, 100), (3, 600)])
def test_the_matrix_comes_back(sparsity, shape):
    weight = zeroed(np.random.default_rng(0), shape, sparsity).astype(np.float16)
    found = compressed(weight)
    np.testing.assert_array_equal(decoded(*found), weight)
    assert len(found.values) % 8 == 0 and len(found.deltas) == len(found.values) // 2
    assert found.row_indices.dtype == np.int32 and len(found.row_indices) == shape[0] + 1


def test_gaps():
    """A gap of 15 fits a delta, one of 16 needs a stored zero; none behind the last non-zero."""
    weight = np.zeros((5, 64), np.float16)
    weight[0, 15], weight[1, 16], weight[2, [0, 32]], weight[3, 0] = 1, 2, [3, 4], 5
    found = compressed(weight)
    assert found.row_indices.tolist() == [0, 1, 3, 5 + 1, 7, 7]
    assert found.values.tolist() == [1, 0, 2, 3, 0, 4, 5, 0]
    nibbles = np.stack([found.deltas & 15, found.deltas >> 4], axis=1).reshape(-1)
    assert nibbles.tolist() == [15, 15, 0, 0, 15, 15, 0, 0]


def write_pruned_llama(folder, dtype):
    write_llama(folder, dtype)
    reader = open_checkpoint(folder)
    layout, tensors = reader.layout, {n: np.array(reader.read(n)) for n in reader.names()}
    rng = np.random.default_rng(0)
    with Writer(folder, layout) as writer:
        for name, w in tensors.items():
            linear = ".layers." in name and w.ndim == 2
            writer.write(name, zeroed(rng, w.shape, 0.7).astype(dtype) if linear else w)
    return folder


@pytest.mark.needs_torch
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_model(tmp_path, capsys, dtype):
    torch = pytest.importorskip("torch")
    source = write_pruned_llama(tmp_path / "m", dtype)
    args = ["pack", str(source), str(tmp_path / "o"), "--format", "macko", "--json"]
    assert main(args) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["rounded"] == (dtype != np.float16) and record["packed"]["ratio"] > 2
    state = torch.load(tmp_path / "o" / "macko.pt", weights_only=True)
    params = icp_jax.load(source)
    reader = open_checkpoint(source)
    for name in reader.names():
        tensor = reader.read(name)
        if ".self_attn." in name or ".mlp." in name:
            arrays = [state.pop(name.replace("weight", f"c_{i}")) for i in range(5)]
            parts = [a.numpy() if isinstance(a, torch.Tensor) else a for a in arrays]
            np.testing.assert_array_equal(decoded(*parts), tensor.astype(np.float16))
        else:
            assert state.pop(name).view(torch.uint8).numpy().tobytes() == tensor.tobytes()
    assert not state and params.config["model_type"] == "llama"
    assert (tmp_path / "o" / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.needs_torch
def test_other_families_are_refused(tmp_path, opt_folder, capsys):
    pytest.importorskip("torch")
    assert main(["pack", str(opt_folder), str(tmp_path / "o"), "--format", "macko"]) == 2
    assert "for Llama and Mistral" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
