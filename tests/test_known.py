"""The warning before a run that is likely to break the model."""

import json
import statistics
from pathlib import Path

import pytest
from conftest import write_llama

import icp_jax
from icp_jax.planning.known import KNOWN, TIMES, Broken, warning

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
FILES = {"opt": ("opt-pydoc", "claim.json"), "llama": ("SmolLM2-135M", "smollm2.json")}
PLUS = {"llama": "smollm2"}  # models of plus.json


def plus(model):
    """The rows of icp+ without a global pass."""
    points = json.loads((RESULTS / "plus.json").read_text())["points"]
    rows = [row for row in points if (row["model"], row["route"]) == (model, "icp+")]
    return [
        {**row, "method": "icp+", "sparsity": float(row["zeros"])}
        for row in rows
        if ":" not in row["zeros"]
    ]


def measured():
    """The lowest broken sparsity by kind and method, from the result files."""
    found = {}
    for kind, (model, name) in FILES.items():
        record = json.loads((RESULTS / name).read_text())
        rows = record["rows" if "rows" in record else "points"]
        rows = rows + (plus(PLUS[kind]) if kind in PLUS else [])
        dense = record.get("dense_perplexity") or record["dense"]["perplexity"]
        for method in {row["method"] for row in rows}:
            of = [row for row in rows if row["method"] == method]
            for s in sorted({row["sparsity"] for row in of}):
                mean = statistics.mean(r["perplexity"] for r in of if r["sparsity"] == s)
                if mean > TIMES * dense:
                    found[kind, method] = Broken(model, s, round(mean / dense, 1))
                    break
    return found


def test_the_table_is_that_of_the_results():
    assert measured() == KNOWN


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return icp_jax.load(write_llama(tmp_path_factory.mktemp("llama") / "m")).family


def test_only_as_much_sparsity_as_broke_a_model_is_warned_of(family):
    found = KNOWN["llama", "icp"]
    assert warning(family, "icp", found.sparsity - 0.1) is None
    assert f"raised the perplexity of SmolLM2-135M {found.ratio} times" in warning(
        family, "icp", found.sparsity
    )
