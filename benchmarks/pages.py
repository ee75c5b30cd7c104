"""The results page, the README's table and demo output, and the pictures, from the result files.

    python benchmarks/pages.py            # write them
    python benchmarks/pages.py --check    # name what differs from the result files, exit 1

Of a picture, --check compares the numbers that it was drawn from: they are in its last line.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import page_accuracy
import page_costs
import page_plus
import page_settings
import page_smollm2
import page_sweeps
import page_zeros
from page_text import BUSY, filled, read, share

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "_generated" / "results.md"
PICTURE = PAGE.parent / "error-growth.svg"
HEAT_MAPS = PAGE.parent / page_sweeps.PICTURE
ZEROS = PAGE.parent / "zeros.md"
SECTIONS = (
    page_accuracy.bundled,
    page_accuracy.bundled_patterns,
    page_accuracy.growth,
    page_accuracy.stories,
    page_accuracy.real,
    page_smollm2.beside_authors,
    page_smollm2.costs,
    page_settings.settings,
    page_plus.plus,
    page_accuracy.sam,
    page_costs.speed,
    page_costs.sam,
    page_costs.memory,
    page_costs.drivers,
    page_costs.gpu,
    page_sweeps.figure4,
    page_costs.sweeps,
    page_zeros.zeros,
    page_costs.models,
)
WRITTEN = "<!-- Written by benchmarks/pages.py from benchmarks/results/. Do not edit. -->\n"
HEAD = f"""\
{WRITTEN}# Results

Every figure comes from a file in `benchmarks/results/`, which also names the command, the machine,
the commit and the versions. `python benchmarks/pages.py` writes this page.

"""


def page() -> str:
    """The text of docs/_generated/results.md."""
    return HEAD + "\n".join(filled(section()) for section in SECTIONS)


def zeros() -> str:
    """The text of docs/_generated/zeros.md."""
    return WRITTEN + filled(page_zeros.guide())


def demo_output() -> str:
    """What `make demo` prints, as a code block of Markdown, and where it ran."""
    from converters.files import REPORT
    from icp_jax.cli import console
    from icp_jax.demo import FIGURE

    found = read("demo.json")
    made = {"checkpoint": "icp", "figure": FIGURE, "report": REPORT}
    result = found | {key: f"demo-out/{name}" for key, name in made.items()}
    printed = io.StringIO()
    plain = {"COLUMNS": "80", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
    with mock.patch.dict(os.environ, plain), mock.patch("sys.stdout", printed):
        console.demo(result)
    busy = ", with other work beside it" if found["load_before"] > BUSY else ""
    return f"```text\n{printed.getvalue().rstrip()}\n```\n\nOn: {found['machine']}{busy}."


def real_output() -> str:
    """The table of `make demo-real`."""
    return page_accuracy.real_table()


PARTS = {"demo": demo_output, "demo-real": real_output, "results": page_accuracy.readme}


def readme(text: str) -> str:
    """The README with the parts between its `<!-- NAME -->` and `<!-- /NAME -->` made anew."""
    for name, made in PARTS.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise SystemExit(f"README.md needs one {start.strip()} and one {end}")
        before, rest = text.split(start)
        text = f"{before}{start}{made()}\n{end}{rest.split(end)[1]}"
    return text


def growth() -> dict[str, list[float]]:
    """Errors after each block, by method."""
    return {row["method"]: row["errors"] for row in read("demo.json")["methods"]}


def picture() -> str:
    """The figure that `make demo` draws, as SVG."""
    import matplotlib

    from icp_jax.report.figures import error_growth

    found = read("demo.json")
    title = f"{found['model']} at {share(round(found['methods'][0]['sparsity'], 3))} sparsity"
    same = mock.patch.dict(os.environ, SOURCE_DATE_EPOCH="0")  # the file says when it was drawn
    with tempfile.TemporaryDirectory() as folder, same:
        path = Path(folder) / PICTURE.name
        with matplotlib.rc_context({"svg.hashsalt": page_sweeps.SALT}):
            error_growth(growth(), path, title)
        return path.read_text()


def pictures() -> dict[Path, tuple[Callable[[], Any], Callable[[], str]]]:
    """(its numbers, what draws it) of each picture."""
    return {PICTURE: (growth, picture), HEAT_MAPS: (page_sweeps.numbers, page_sweeps.draw)}


def pictured(path: Path) -> Any:
    """The numbers that a picture was drawn from."""
    said = re.search(r"<!-- (\{.*\}) -->\s*\Z", path.read_text()) if path.exists() else None
    return json.loads(said[1]) if said else None


def stale() -> list[str]:
    """Files that differ from what the result files say."""
    kept = PAGE.read_text() if PAGE.exists() else ""
    found = [PAGE] if kept != page() else []
    found += [ZEROS] if not ZEROS.exists() or ZEROS.read_text() != zeros() else []
    found += [README] if README.read_text() != readme(README.read_text()) else []
    found += [path for path, (numbers, _) in pictures().items() if pictured(path) != numbers()]
    return [str(path.relative_to(ROOT)) for path in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if one differs")
    if parser.parse_args().check:
        for name in (differing := stale()):
            print(f"{name} differs from benchmarks/results: run python benchmarks/pages.py")
        return bool(differing)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
    ZEROS.write_text(zeros())
    README.write_text(readme(README.read_text()))
    for path, (numbers, draw) in pictures().items():
        if pictured(path) != numbers():
            path.write_text(f"{draw().rstrip()}\n<!-- {json.dumps(numbers())} -->\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
