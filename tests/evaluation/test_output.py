"""The memory of the output layer: bounded, whatever the vocabulary."""

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import LLAMA

from icp_jax.evaluation import output
from icp_jax.evaluation.divergence import divergence
from icp_jax.models import make_family

BOUND = 64 << 20  # bytes
VOCABULARY, WIDTH = 256_000, 2048


def of(tied, dtype):
    """The output layer of a large vocabulary; its table is shapes only, but for the dtype."""
    config = {**LLAMA, "hidden_size": 48, "vocab_size": VOCABULARY, "tie_word_embeddings": tied}
    table = np.zeros((VOCABULARY, 48), dtype)
    head = {"norm": {"scale": np.ones(48, np.float32)}}
    head |= {} if tied else {"lm_head": {"kernel": table.T}}
    embed = {"tokens": {"embedding": table}}
    return output.of(make_family(config), embed, head, "float32")


def wide(weights):
    """The same output layer for hidden states of another width."""

    def shape(leaf):
        wider = tuple(WIDTH if n == 48 else n for n in leaf.shape)
        return jax.ShapeDtypeStruct(wider, leaf.dtype)

    return jax.tree.map(shape, weights)


def temporary(program, *args):
    return program.lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "tied, dtype", [(True, np.float32), (False, np.float16), (True, ml_dtypes.bfloat16)]
)
def test_memory_does_not_grow_with_the_vocabulary(tied, dtype):
    layout, weights = of(tied, dtype)
    assert not layout.whole and weights.table.shape == (VOCABULARY, 48)
    assert weights.table.nbytes == VOCABULARY * 48 * np.dtype(dtype).itemsize  # as stored
    x = jax.ShapeDtypeStruct((2, 2048, 48), np.float32)
    tokens = jax.ShapeDtypeStruct((2, 2048), np.int32)
    assert temporary(output.losses, layout, weights, x, tokens) < BOUND
    both = layout, layout, weights, weights
    assert temporary(divergence, *both, x, x, tokens) < BOUND


def test_memory_does_not_grow_with_the_width():
    layout, weights = of(True, ml_dtypes.bfloat16)
    parts = output.columns(VOCABULARY, WIDTH)
    layout = output.Layout(layout.head, layout.dtype, VOCABULARY, parts)
    x = jax.ShapeDtypeStruct((1, 2048, WIDTH), np.float32)
    tokens = jax.ShapeDtypeStruct((1, 2048), np.int32)
    assert temporary(output.losses, layout, wide(weights), x, tokens) < BOUND


def test_a_small_vocabulary_is_in_one_part():
    assert output.columns(50_272, 256) == 50_272
    assert output.columns(50_272, 4096) == 1024 and output.columns(256_000, 64) == 4096
