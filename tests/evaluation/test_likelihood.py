"""Log-probabilities of continuations: the model's own, whatever the batches and the parts."""

import jax
import numpy as np
import pytest
from conftest import write_llama

import icp_jax
from icp_jax.errors import InputError
from icp_jax.evaluation import likelihood, output
from icp_jax.evaluation.likelihood import Request, likelihoods, padded, request
from icp_jax.streaming.passes import embed_batch, forward


@pytest.fixture(scope="module", params=["opt", "llama"])
def model(request, opt_folder, tmp_path_factory):
    if request.param == "opt":
        return icp_jax.load(opt_folder)
    return icp_jax.load(write_llama(tmp_path_factory.mktemp("models") / "llama"))


def drawn(model, lengths, seed=0):
    rng, most = np.random.default_rng(seed), model.family.context
    rows = [rng.integers(0, model.config["vocab_size"], n).tolist() for n in lengths]
    return [
        request(row[: -(1 + k % 3)], row[-(1 + k % 3) :], most)[0] for k, row in enumerate(rows)
    ]


def logits(model, asked):
    """The logits of what each request reads, by the whole model at once."""
    longest = max(len(read) for read, _ in asked)
    tokens = np.asarray([(*read, *[0] * (longest - len(read))) for read, _ in asked])
    found = np.asarray(jax.jit(model.logits)(tokens).astype("float32"))
    return [row[: len(read)] for row, (read, _) in zip(found, asked, strict=True)]


def direct(model, asked):
    """The same from the logits of the whole model."""
    found = []
    for (_, continuation), row in zip(asked, logits(model, asked), strict=True):
        last, target = row[-len(continuation) :], np.asarray(continuation)
        scores = last - np.log(np.sum(np.exp(last), axis=-1, keepdims=True))
        first = last.argmax(-1)
        found.append((scores[np.arange(len(target)), target].sum(), bool((first == target).all())))
    return found


def alike(found, expected):
    scores, wanted = (np.asarray([score for score, _ in one]) for one in (found, expected))
    assert np.max(np.abs(scores - wanted)) < 1e-4 * np.max(np.abs(wanted))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_they_are_the_models_own(model):
    asked = drawn(model, [4, 9, 5, 31, 33, 20])
    best = [int(row[-1].argmax()) for row in logits(model, asked)]
    asked += [Request(read, (token,)) for (read, _), token in zip(asked, best, strict=True)]
    found = likelihoods(model, asked)
    alike(found, direct(model, asked))
    assert all(greedy for _, greedy in found[-len(best) :])


def test_the_vocabulary_in_parts(model, monkeypatch):
    asked = drawn(model, [4, 9, 5])
    whole = likelihoods(model, asked)
    monkeypatch.setattr(output, "columns", lambda vocabulary, width: 40)
    alike(likelihoods(model, asked), whole)


class Counted:
    """A model that counts the blocks it is asked for."""

    def __init__(self, model):
        self.model, self.blocks = model, 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def block(self, t):
        self.blocks += 1
        return self.model.block(t)


def test_blocks_are_read_once_for_all_that_fits(opt_folder, monkeypatch):
    model = icp_jax.load(opt_folder)
    asked = drawn(model, range(3, 60))
    once = Counted(model)
    whole = likelihoods(once, asked)
    assert once.blocks == model.family.n_blocks
    row = 4 * 64 * model.family.hidden_size
    monkeypatch.setattr(likelihood.storage, "host_free", lambda: 4 * 12 * row)
    often = Counted(model)
    assert likelihoods(often, asked) == whole
    assert often.blocks > 2 * model.family.n_blocks


def test_programs_are_compiled_a_handful_of_times(opt_folder):
    model = icp_jax.load(opt_folder)
    jax.clear_caches()
    programs = embed_batch, forward, output.scores
    likelihoods(model, drawn(model, range(3, 64)))
    lengths = len({padded(n, model.family.context) for n in range(2, 63)})
    assert [p._cache_size() for p in programs] == [lengths, lengths, 1]
    likelihoods(model, drawn(model, [7, 12, 33, 50, 41] * 9, seed=1))
    assert [p._cache_size() for p in programs] == [lengths, lengths, 1]


def test_rows_that_are_read_alike_are_read_once():
    asked = [Request((1, 2), (3,)), Request((1, 2), (4,)), Request((1, 2, 3), (3, 4))]
    rows = likelihood._rows(asked)
    assert [(row.read, row.requests) for row in rows] == [((1, 2, 3), [2]), ((1, 2), [0, 1])]


def test_padded_lengths():
    assert [padded(n, 2048) for n in (1, 32, 33, 49, 65, 97, 129, 2000)] == [
        *(32, 32, 48, 64, 96, 128, 192, 2048)
    ]
    assert padded(70, 80) == 80


def test_the_start_of_a_long_context_is_cut_off():
    assert request(range(9), (9, 10), 10) == (Request(tuple(range(10)), (9, 10)), False)
    assert request(range(9), (9, 10), 4) == (Request((6, 7, 8, 9), (9, 10)), True)
    with pytest.raises(InputError, match="exceeds the model's context of 1"):
        request([1], (2, 3), 1)


def test_a_model_that_overflows(opt_folder):
    model = icp_jax.load(opt_folder)
    model.params["blocks"]["2"]["fc2"]["bias"][:] = np.inf
    with pytest.raises(InputError, match="not finite"):
        likelihoods(model, drawn(model, [5]))
