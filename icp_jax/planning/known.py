"""Which sparsities are known to break a model, from the results of the benchmarks."""

from __future__ import annotations

from typing import NamedTuple

from icp_jax.models.spec import Family

TIMES = 3.0  # a model with more than this times the dense perplexity is broken


class Broken(NamedTuple):
    """The lowest measured sparsity that broke a model. ratio: perplexity over the dense one."""

    model: str
    sparsity: float
    ratio: float


# By kind of model and method. A test holds it to `benchmarks/results`.
KNOWN: dict[tuple[str, str], Broken] = {
    ("opt", "magnitude"): Broken("opt-pydoc", 0.7, 4.6),
    ("opt", "wanda"): Broken("opt-pydoc", 0.8, 6.0),
    ("opt", "sparsegpt"): Broken("opt-pydoc", 0.8, 3.4),
    ("llama", "magnitude"): Broken("SmolLM2-135M", 0.5, 18.3),
    ("llama", "wanda"): Broken("SmolLM2-135M", 0.6, 5.0),
    ("llama", "sparsegpt"): Broken("SmolLM2-135M", 0.6, 3.8),
    ("llama", "icp"): Broken("SmolLM2-135M", 0.7, 7.8),
    ("llama", "icp+"): Broken("SmolLM2-135M", 0.7, 4.6),
}


def warning(family: Family, method: str, sparsity: float) -> str | None:
    """One line if this much sparsity is known to break models of this kind, and what to do."""
    found = KNOWN.get(("opt" if family.name == "opt" else "llama", method))
    if family.kind != "text" or found is None or sparsity < found.sparsity:
        return None
    other = "" if method == "icp+" else ", method icp+"
    return (
        f"sparsity {sparsity:g} is likely to break this model: at {found.sparsity:g}, {method} "
        f"raised the perplexity of {found.model} {found.ratio:g} times; "
        f"try less sparsity{other}, a global pass or more calibration samples"
    )
