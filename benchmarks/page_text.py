"""Markdown for the pages of results: files, tables, and where a figure comes from."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from common import RESULTS

METHODS = {"magnitude": "magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT", "icp": "ICP"}
BUSY = 2.0  # of the system's load before a demo: above it, its seconds are not its own
FROM_PAGE = "../../benchmarks/results"  # of the folder docs/_generated


def read(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / name).read_text())


def there(name: str) -> bool:
    """Whether there is such a result file."""
    return (RESULTS / name).is_file()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Columns after the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured(name: str) -> str:
    """Command, machine, commit, versions and result file of a table, in one paragraph."""
    found = read(name)
    facts = [found["machine"] + (f", {found['card']}" if found.get("card") else "")]
    facts += [f"commit {found['commit'][:7]}"] if "commit" in found else []
    known = found.get("versions", {})
    facts += [f"{label} {known[key]}" for key, label in VERSIONS.items() if key in known]
    return f"[{name}]({FROM_PAGE}/{name}): {'; '.join(facts)}; `{found['command']}`"


VERSIONS = {"jax": "JAX", "torch": "PyTorch"}


def filled(section: str) -> str:
    """The same Markdown with its paragraphs in lines of at most 100 characters."""
    parts = section.rstrip().split("\n\n")
    return (
        "\n\n".join(p if p[0] in "#|![" else textwrap.fill(p, 100, **WHOLE) for p in parts) + "\n"
    )


WHOLE: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def spread(row: dict[str, Any], digits: int = 2, times: float = 1.0) -> str:
    """A mean, and the range over the seeds where there is one."""
    mean, low, high = (f"{times * row[key]:.{digits}f}" for key in ("mean", "min", "max"))
    return mean if low == high else f"{mean} ({low}-{high})"


def share(sparsity: float) -> str:
    return f"{sparsity:.0%}"


def rows_of(found: dict[str, Any], **wanted: Any) -> dict[str, dict[str, Any]]:
    """Rows of a table of methods that have these values, by method."""
    return {row["method"]: row for row in found["table"] if wanted.items() <= row.items()}
