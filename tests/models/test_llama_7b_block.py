"""A block of Llama-7B's true size, random bf16 weights in two shards: folder to folder."""

import json

import ml_dtypes
import numpy as np
import pytest

import icp_jax
from converters import table_for
from converters.layout import plan_layout
from converters.safetensors_files import Writer
from icp_jax import CalibrationConfig, PruneConfig, RunConfig
from icp_jax.runs.run import prune_folder

CONFIG = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads,pattern", [(32, None), (8, "2:4")])
def test_block(tmp_path, kv_heads, pattern):
    config = {**CONFIG, "num_key_value_heads": kv_heads}
    folder, dtype = tmp_path / "m", np.dtype(ml_dtypes.bfloat16)
    folder.mkdir()
    placed = table_for("llama").place(config)
    layout = plan_layout({p.name: (dtype, p.shape) for p in placed}, {"format": "pt"}, 3 * 10**8)
    assert layout.index is not None
    writer, rng = Writer(folder, layout), np.random.default_rng(0)
    for p in placed:
        tensor = rng.standard_normal(p.shape, np.float32) * 0.02 + float("norm" in p.name)
        writer.write(p.name, tensor.astype(dtype))
    writer.close()
    (folder / "config.json").write_text(json.dumps(config))
    np.save(tmp_path / "ids.npy", rng.integers(0, 512, (2, 256)))
    done = prune_folder(
        RunConfig(
            model=str(folder),
            out=str(tmp_path / "out"),
            prune=PruneConfig(method="icp", sparsity=None if pattern else 0.5, pattern=pattern),
            calibration=CalibrationConfig(str(tmp_path / "ids.npy"), samples=2, seq_len=256),
        )
    )
    assert done.sparsity == pytest.approx(0.5, abs=1e-6)
    facts = icp_jax.verify(done.out, source=folder)
    assert len(facts["layers"]) == len(facts["changed"]) == 7
    assert pattern is None or all("2:4" in layer["patterns"] for layer in facts["layers"])
    assert all(layer.error < 0.5 for layer in done.blocks[0].layers)
