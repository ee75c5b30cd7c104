"""The text every CPython carries: `pydoc_data.topics` and the standard library's docstrings.

An entry is one topic or one docstring. A tenth is held out by a hash of the entry itself, so
that equal entries fall on the same side; entries that occur twice are kept once.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
from pathlib import Path

MINIMUM = 40  # characters: shorter docstrings say nothing


def _docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # files that are wrong on purpose
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, kinds))
    return [text for text in found if text]


def entries() -> list[str]:
    """All entries of this Python, cleaned, each once, in a fixed order."""
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts:
            texts += _docstrings(path)
    cleaned = (inspect.cleandoc(text).strip() for text in texts)
    return list(dict.fromkeys(t for t in cleaned if len(t) >= MINIMUM and t.isascii()))


def held_out(entry: str) -> bool:
    """Whether an entry belongs to the tenth that is never trained on."""
    return hashlib.sha256(entry.encode()).digest()[0] < 26  # 26/256: a tenth


def split() -> tuple[list[str], list[str]]:
    """(training entries, held-out entries)."""
    texts = entries()
    return [t for t in texts if not held_out(t)], [t for t in texts if held_out(t)]


if __name__ == "__main__":
    train, test = split()
    print(f"{len(train)} training entries, {sum(map(len, train))} characters")
    print(f"{len(test)} held-out entries, {sum(map(len, test))} characters")
