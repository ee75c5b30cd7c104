"""The results page: which settings ICP and ICP+ want, on three models."""

from __future__ import annotations

from page_text import METHODS, measured, read, share, table, there

MODELS = {
    "opt-pydoc": "The bundled OPT",
    "stories260K": "stories260K, a Llama of 260,000 weights",
    "smollm2": "SmolLM2-135M-Instruct, a Llama",
}
NAMES = METHODS | {"icp+": "ICP+"}
DEFAULT = "default"
COLUMNS = ("lr", "epochs", "retune_lr", "retune_epochs", "alpha", "beta")
HEAD = ("zeros", "method", "lr", "epochs", "re-tune lr", "epochs", "α", "β", "perplexity", "s")
ABOUT = """\
### What settings ICP and ICP+ want

One run a row, one seed; perplexity on held-out text. Some ran with other work beside them, as the
seconds show. What is left empty has no say there.
"""


def settings() -> str:
    """One table a model, the rows of equal zeros together."""
    parts = [_model(name, title) for name, title in MODELS.items() if there(_file(name))]
    return "\n".join([ABOUT, *parts])


def _model(name: str, title: str) -> str:
    file = _file(name)
    found = read(file)
    windows = found["windows"]
    rows = sorted(found["points"], key=lambda row: (_zeros(row), _method(row)))
    return f"""\
#### {title}

{windows[0]} windows of {windows[1]} tokens. Dense: {found["dense_perplexity"]:.2f}.

{table(HEAD, [_row(row) for row in rows])}

{measured(file)}
"""


def _file(name: str) -> str:
    return f"defaults_{name}.json"


def _zeros(row: dict) -> str:
    return row.get("pattern") or share(row["sparsity"])


def _method(row: dict) -> str:
    return row.get("method", "icp")


def _row(row: dict) -> list[str]:
    cells = []
    for name in COLUMNS:
        unused = name.startswith("retune") and _method(row) != "icp+"
        unused |= name in ("alpha", "beta") and "pattern" in row
        unused |= name in ("lr", "epochs") and not _method(row).startswith("icp")
        cells.append("" if unused else f"{row[name]:g}" if name in row else DEFAULT)
    return [
        _zeros(row),
        NAMES[_method(row)],
        *cells,
        f"{row['perplexity']:.2f}",
        f"{row['seconds']:.0f}",
    ]
