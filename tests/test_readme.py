"""The README and the docs: every code block runs, every figure is that of a result file."""

import importlib.util
import re

import documents
import jax
import numpy as np
import page_sweeps
import page_text
import pages
import pytest

import icp_jax
from icp_jax.demo import METHODS

README = documents.ROOT / "README.md"


def saved(names, folder, printed):
    assert (folder / "opt-pydoc-50" / "config.json").is_file()
    assert "perplexity=" in printed


def in_one_trace(names, folder, printed):
    assert names["metrics"].error.shape == (6,) and np.all(names["metrics"].error > 0)


def swept(names, folder, printed):
    errors = names["errors"]
    assert errors.shape == (3, 6) and np.all(np.diff(errors[:, -1]) > 0)


def reloaded(names, folder, printed):
    kernels = [p for n, p in names["model"].named_parameters() if n.endswith("fc2.weight")]
    assert kernels and all((kernel == 0).float().mean() > 0.5 for kernel in kernels)


def solved(names, folder, printed):
    assert int((~names["keep"]).sum()) == 1024


def tuned(names, folder, printed):
    assert names["metrics"].epochs[-1] < names["metrics"].epochs[0]
    assert np.all(np.asarray(names["tuned"]["kernel"])[~np.asarray(names["keep"])] == 0)


def kept(names, folder, printed):
    before, after = (
        np.asarray(params["blocks"]["0"]["fc1"]["kernel"])
        for params in (names["pruned"].params, names["params"])
    )
    assert np.all(after[before == 0] == 0) and np.any(after[before != 0] != before[before != 0])


def answered(names, folder, printed):
    assert 0 <= names["scores"].mean <= 1 and len(names["scores"].tasks) == 2


def distilled(names, folder, printed):
    assert len(names["metrics"].heldout) == 2
    kernels = [names[k].params["blocks"]["0"]["fc1"]["kernel"] for k in ("pruned", "better")]
    assert np.array_equal(*(np.asarray(kernel) == 0 for kernel in kernels))


def held_in_torch(linears):
    """The pruned model's zeros are zeros, and its other weights have moved."""
    from safetensors.numpy import load_file

    before = load_file("opt-125m-60/model.safetensors")
    assert len(linears) == 36
    for name, linear in linears.items():
        old, new = before[name].astype(np.float32), linear.weight.detach().numpy()
        assert np.mean(old == 0) > 0.3 and np.all(new[old == 0] == 0)
        assert np.mean(new[old != 0] != old[old != 0]) > 0.5


def trained_in_torch(names, folder, printed):
    held_in_torch(names["linears"])
    saved = icp_jax.verify("opt-125m-60-tuned")
    assert saved["sparsity"] == icp_jax.verify("opt-125m-60")["sparsity"]


def adapted_in_torch(names, folder, printed):
    held_in_torch(names["merged"])


def masks_are_taken(names, folder, printed):
    kept = names["state"].keep["blocks"]["0"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kept, names["model"].params["blocks"]["0"]["fc1"]["kernel"] != 0)


# what an example does -> what must hold after it
CHECKS = {
    'icp_jax.save(pruned, "opt-pydoc-50")': saved,
    "metrics = run(": in_one_trace,
    "sweep = ": swept,
    'from_pretrained("opt-125m-70")': reloaded,
    "pruners.sparsegpt(": solved,
    "= compensate(": tuned,
    "icp_jax.distill(": distilled,
    "icp_jax.keep_zeros(optax.adamw(1e-4))": kept,
    "icp_jax.load_masks(": masks_are_taken,
    "class KeepZeros(": trained_in_torch,
    "class LoRA(": adapted_in_torch,
    "evaluate_tasks(": answered,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in which the names of the pages mean something small."""
    monkeypatch.chdir(tmp_path)
    documents.stand_ins(tmp_path, monkeypatch)
    return tmp_path


# the blocks of the other pages take minutes
RUN = [
    pytest.param(page, marks=pytest.mark.slow) if page.startswith("docs/") else page
    for page in documents.PAGES
]


@pytest.mark.parametrize("page", RUN)
def test_code_blocks_run(page, folder, capsys):
    with jax.numpy_dtype_promotion("standard"):  # the user's own code is not strict
        for example in documents.examples(page):
            text = example.parsed
            if (
                re.search(r"transformers|torch\.", text)
                and importlib.util.find_spec("torch") is None
            ):
                continue
            if "tasks" in text and importlib.util.find_spec("lm_eval") is None:
                continue
            capsys.readouterr()
            example.evaluate()
            printed = capsys.readouterr().out
            for what, check in CHECKS.items():
                if what in text:
                    check(example.namespace, folder, printed)


@pytest.mark.parametrize("what", CHECKS)
def test_every_check_has_an_example(what):
    found = [what in e.parsed for page in documents.PAGES for e in documents.examples(page)]
    assert any(found)


@pytest.mark.parametrize("page", documents.PAGES)
def test_every_code_block_says_its_language(page):
    assert documents.languages(page) <= {*documents.PYTHON, documents.SHELL, *documents.SHOWN}


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", documents.PAGES)
def test_links_lead_somewhere(page):
    path = documents.ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_pages_say_what_the_result_files_say():
    assert pages.stale() == []


def test_a_figure_that_was_edited_is_noticed(tmp_path, monkeypatch):
    for name in ("PAGE", "README", "PICTURE", "HEAT_MAPS", "ZEROS"):
        copy = tmp_path / getattr(pages, name).name
        copy.write_text(getattr(pages, name).read_text())
        monkeypatch.setattr(pages, name, copy)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    assert pages.stale() == []
    shown = page_text.read("demo.json")["methods"]
    perplexity = f"{shown[-1]['perplexity']:.2f}"
    pages.README.write_text(pages.README.read_text().replace(perplexity, "1.23"))
    pages.PAGE.write_text(pages.PAGE.read_text().replace("AMD EPYC", "another"))
    drawn = pages.PICTURE.read_text().replace(str(shown[0]["errors"][0]), "0.5")
    pages.PICTURE.write_text(drawn)
    best = f"{min(p[2] for p in page_sweeps.numbers()['opt-pydoc'])}"
    pages.HEAT_MAPS.write_text(pages.HEAT_MAPS.read_text().replace(best, "1.5"))
    pages.ZEROS.write_text(pages.ZEROS.read_text().replace("| 16.00 |", "| 15.00 |"))
    wrong = ["README.md", "alpha-beta.svg", "error-growth.svg", "results.md", "zeros.md"]
    assert sorted(pages.stale()) == wrong


def test_every_result_file_is_shown():
    page = documents.RESULTS.read_text()
    assert {p.name for p in page_text.RESULTS.iterdir()} == set(
        re.findall(r"\[([^]]+json)\]", page)
    )


def test_the_demo_is_that_of_the_claim():
    """The README's perplexities, against those of another run with the same settings."""
    demo, claim = (page_text.read(f"{name}.json") for name in ("demo", "claim"))
    assert demo["dense"] == pytest.approx(claim["dense"], rel=1e-3)
    rows = {r["method"]: r for r in claim["rows"] if r["sparsity"] == 0.7 and r["seed"] == 0}
    for method, row in zip(METHODS, demo["methods"], strict=True):
        assert row["method"] == method and abs(row["sparsity"] - 0.7) < 1e-3
        assert row["perplexity"] == pytest.approx(rows[method]["perplexity"], rel=0.01)
