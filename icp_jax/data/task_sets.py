"""Task sets in a local folder: the questions of a benchmark, by split, as `datasets` has them.

The folder holds, for each task, a folder named like the task, or like its data set on the hub
(`glue/rte`), with one split each: saved by `save_to_disk`, or as `.parquet`, `.jsonl` or `.json`
files. A single file `TASK*.jsonl` is one split.
"""

from __future__ import annotations

import bz2
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converters.rules import first_line
from icp_jax.errors import InputError

SPLIT = re.compile(r"(train|validation|test)(?:[-_.].*)?\.(parquet|jsonl|json)(?:\.gz)?")
FILE = re.compile(r"\.(parquet|jsonl|json)(?:\.gz)?$|\.txt(?:\.bz2)?$")
LINES = 6  # of a question in a text file of HellaSwag: context, answer, four endings


def load(root: Path, task: str, name: str, config: str | None, split: str) -> dict[str, Any]:
    """The splits of a task's set, `{split: datasets.Dataset}`.

    name, config: of the data set on the hub. split: of a single file. Raises InputError.
    """
    if not root.is_dir():
        raise InputError(f"no folder {root}: give the folder that holds the task sets")
    wanted = _places(task, name, config)
    try:
        for place in wanted:
            if found := _splits(root / place):
                break
        else:
            found = _single(root, task, name, split)
    except InputError:
        raise
    except Exception as error:  # pyarrow and datasets raise unrelated types
        raise InputError(
            f"the set of {task} in {root} cannot be read: {first_line(error)}"
        ) from None
    if not found:
        raise InputError(
            f"{root} has no set for the task {task}: put its splits into the folder {task} or "
            f"{'/'.join(filter(None, (name.split('/')[-1], config)))} there"
        )
    if empty := [name for name, rows in found.items() if not len(rows)]:
        raise InputError(f"the set of {task} in {root} has no rows in {empty[0]}: give other data")
    return {name: _columns(task, rows) for name, rows in found.items()}


def _places(task: str, name: str, config: str | None) -> list[str]:
    """Folders that may hold a task's set, the likeliest first."""
    repo = name.split("/")[-1]
    bases = list(dict.fromkeys((task, name, repo)))
    inner = [f"{base}/{config}" for base in bases] if config else []
    return list(dict.fromkeys([*inner, *bases, *([config] if config else [])]))


def _splits(folder: Path) -> dict[str, Any]:
    """The splits in a folder; empty if it holds none. A lone folder inside is looked into."""
    import datasets

    if not folder.is_dir():
        return {}
    if (folder / "dataset_dict.json").is_file():
        return dict(datasets.load_from_disk(str(folder)))
    if (folder / "state.json").is_file():
        rows = datasets.load_from_disk(str(folder))
        return {str(rows.split or folder.name): rows}
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    saved = [path for path in inner if (path / "state.json").is_file()]
    if saved:
        return {path.name: datasets.load_from_disk(str(path)) for path in saved}
    if files := dict(_files(folder)):
        return {name: _joined(paths) for name, paths in files.items()}
    lone = inner[0] if len(inner) == 1 else folder / "data"
    return _splits(lone)


def _files(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """(split, its files) of a folder."""
    by_split: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if (found := SPLIT.fullmatch(path.name)) and path.is_file():
            by_split.setdefault(found[1], []).append(path)
    yield from by_split.items()


def _single(root: Path, task: str, name: str, split: str) -> dict[str, Any]:
    """The one split in a file named like the task or its data set; empty if there is none."""
    starts = tuple({task, name.split("/")[-1]})
    for path in sorted(root.iterdir()):
        if path.is_file() and path.name.startswith(starts) and FILE.search(path.name):
            return {split: _rows(path)}
    return {}


def _joined(paths: list[Path]) -> Any:
    import datasets

    return datasets.concatenate_datasets([_rows(path) for path in paths])


def _rows(path: Path) -> Any:
    """The rows of one file. Raises InputError."""
    import datasets
    import pyarrow.parquet

    if path.suffix == ".parquet":
        return datasets.Dataset(pyarrow.parquet.read_table(path))
    opened = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opened(path, "rt", encoding="utf-8-sig") as file:  # type: ignore[operator]
        text = file.read()
    if ".txt" in path.suffixes:
        return datasets.Dataset.from_list(list(_hellaswag(path, text)))
    rows = json.loads(text) if text.lstrip()[:1] == "[" else _lines(path, text)
    return datasets.Dataset.from_list(rows)


def _lines(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise InputError(f"{path} line {number} is not JSON: fix or remove it") from None
    return rows


def _columns(task: str, rows: Any) -> Any:
    """The rows with the columns that the task's definition reads, where another form is known."""
    names = set(rows.column_names)
    if task == "boolq" and "label" not in names and "answer" in names:
        return rows.add_column("label", [int(answer) for answer in rows["answer"]])
    if task.startswith("lambada") and {"context", "continuation"} <= names:
        pairs = zip(rows["context"], rows["continuation"], strict=True)
        return rows.add_column("text", [f"{context} {last}" for context, last in pairs])
    return rows


def _hellaswag(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """The questions of a text file of HellaSwag, see LINES.

    Its contexts are whole. A sentence begun at their end, in lower case, is the data set's `ctx_b`.
    """
    lines = text.rstrip("\n").split("\n")
    if len(lines) % LINES:
        lines = lines[: -(len(lines) % LINES)]
    for at in range(0, len(lines), LINES):
        whole, answer, *endings = lines[at : at + LINES]
        activity, _, context = whole.partition(": ")
        if not answer.strip().isdigit():
            raise InputError(f"{path} line {at + 2} is not the number of an ending: fix the file")
        begun = re.search(r"(?<=[.!?]) ([a-z][^.!?]*)$", context)
        yield {
            "activity_label": activity,
            "ctx_a": context[: begun.start()] if begun else context,
            "ctx_b": begun[1] if begun else "",
            "endings": endings,
            "label": answer.strip(),
        }
