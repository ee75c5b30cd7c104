"""Strict dtype promotion for all tests, and small checkpoints on disk."""

import contextlib
import json
import os
from pathlib import Path

os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import checked_shapes  # noqa: F401
import jax
import numpy as np
import pytest
from hypothesis import settings
from runs import ARGUMENTS, BLOCKS

import icp_jax
from converters import table_for
from converters.layout import plan_layout
from converters.safetensors_files import Writer
from icp_jax.cli import main
from icp_jax.demo import BUNDLED
from icp_jax.streaming import storage

settings.register_profile("same-each-time", derandomize=True)
settings.load_profile("same-each-time")

OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": 2048,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 128,
    "max_position_embeddings": 32,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def rope(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | settings}


def write_opt(folder: Path, dtype=np.float16, shard_bytes=10**9, seed=0, **changes) -> Path:
    """A random OPT with the bundled model's tokenizer, as a Hugging Face folder."""
    write_random(folder, {**OPT, **changes}, dtype, shard_bytes, seed)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BUNDLED / name).read_bytes())
    return folder


def write_llama(folder: Path, dtype=np.float32, **changes) -> Path:
    """A random Llama with grouped queries, as a Hugging Face folder without a tokenizer."""
    write_random(folder, {**LLAMA, "tie_word_embeddings": True, **changes}, dtype)
    return folder


def write_random(folder: Path, config: dict, dtype, shard_bytes=10**9, seed=0) -> None:
    """Random weights for a config with a tied head, of a plausible size."""
    folder.mkdir(parents=True)
    table = table_for(config["model_type"])
    placed = [p for p in table.place(config) if p.name != "lm_head.weight"]
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    layout = plan_layout({p.name: (dtype, p.shape) for p in placed}, {"format": "pt"}, shard_bytes)
    writer = Writer(folder, layout)
    for p in placed:
        tensor = rng.normal(size=p.shape) * (0.1 if len(p.shape) > 1 else 0.02)
        tensor = tensor + 1 if "norm.weight" in p.name else tensor
        writer.write(p.name, tensor.astype(dtype))
    writer.close()
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", autouse=True)
def compiled_for_one_module():
    """Programs are dropped after each module: hundreds of them take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def opt_folder(tmp_path_factory) -> Path:
    """A random OPT of three blocks. Tests leave it as it is."""
    return write_opt(tmp_path_factory.mktemp("models") / "opt")


@pytest.fixture(scope="session")
def bundled() -> Path:
    return BUNDLED


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(3, 2048, (6, 24)).astype(np.int32)


def pin_streams(monkeypatch) -> None:
    """Streams in pinned host memory, as an accelerator has them."""
    pinned = staticmethod(lambda shape, dtype, *_: storage.Samples(shape, dtype, "pinned_host"))
    monkeypatch.setattr(storage, "empty", pinned)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, bundled):
    """A model and a text, and the output of a run that nothing disturbs."""
    place = tmp_path_factory.mktemp("faults")
    write_opt(place / "model", num_hidden_layers=BLOCKS, hidden_size=64, word_embed_proj_dim=64)
    (place / "text.txt").write_text((bundled / "calibration.txt").read_text()[:6000])
    (place / "work").mkdir()
    with contextlib.chdir(place):
        assert main(ARGUMENTS) == 0
    (place / "work" / "out").rename(place / "whole")
    return place


@pytest.fixture
def place(undisturbed, tmp_path, monkeypatch):
    """The same model with an output folder of its own; the tests run in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "text.txt"):
        (tmp_path / name).symlink_to(undisturbed / name)
    (tmp_path / "work").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def opt(opt_folder):
    return icp_jax.load(opt_folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return icp_jax.load(write_llama(tmp_path_factory.mktemp("llama") / "m"))


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(1).integers(3, 97, (7, 24)).astype(np.int32)
