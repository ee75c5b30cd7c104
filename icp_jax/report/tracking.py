"""Trackers: the figures of each block, sent to jsonl, TensorBoard, Weights & Biases or MLflow.

Each goes through its library's own client, which is an optional extra. Where a client writes to
disk, it writes into the folder `OUT.tracking` beside the output.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from icp_jax.errors import InputError
from icp_jax.report import clients

Values = Mapping[str, float]
SUFFIX = ".tracking"
NEEDS = {"jsonl": "", "tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


class Tracker(Protocol):
    """One tracker of one run."""

    def log(self, step: int, values: Values) -> None: ...
    def close(self, done: bool) -> None: ...


def names(asked: str) -> list[str]:
    """The trackers of a comma-separated list. Raises InputError if one cannot be used."""
    found = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    for name in found:
        if name not in NEEDS:
            raise InputError(f"track must be of {', '.join(NEEDS)}, got {name!r}")
        if NEEDS[name] and importlib.util.find_spec(NEEDS[name]) is None:
            raise InputError(f"{name} is not installed: pip install 'icp-jax[{name}]'")
    return found


def values(block: Mapping[str, Any], **memory: float | None) -> dict[str, float]:
    """The figures of a block by name. block: its record. memory: MiB by place."""
    zeros, size = (sum(layer[key] for layer in block["layers"]) for key in ("zeros", "size"))
    tuned, again = block["compensation"] or {}, block.get("retune") or {}
    spent = block["seconds"]
    found = {
        **{name: block.get(name) for name in ("error", "error_median", "error_p95")},
        "loss/before": tuned.get("before"),
        "loss/after": tuned.get("after"),
        "loss/pruned": again.get("before"),
        "loss/retuned": again.get("after"),
        "sparsity": zeros / size,
        "seconds/total": round(sum(spent.values()), 3),
        **{f"seconds/{phase}": value for phase, value in spent.items()},
        **{f"memory/{place}_mib": value for place, value in memory.items()},
    }
    return {name: float(value) for name, value in found.items() if value is not None}


class Trackers:
    """All trackers of a run. One that fails is left out from then on, with one line.

    asked: see `names`. out: the output folder. settings: by their dotted names. again: add to what
    an interrupted run wrote. say: gets the lines.
    """

    def __init__(
        self,
        asked: str,
        out: Path,
        settings: Mapping[str, Any],
        say: Callable[[str], None],
        again: bool = False,
    ):
        self.folder, self.say = out.with_name(out.name + SUFFIX), say
        self.kept: dict[str, Tracker] = {}
        for name in names(asked):
            self._try(name, partial(self._open, name, out.name, settings, again))

    def _open(self, name: str, run: str, settings: Mapping[str, Any], again: bool) -> None:
        self.folder.mkdir(exist_ok=True)
        if name == "jsonl":
            self.kept[name] = Lines(self.folder / "blocks.jsonl", again)
        else:
            self.kept[name] = clients.CLIENTS[name](self.folder, run, settings)

    def log(self, step: int, found: Values) -> None:
        """Send the figures of a block. step: its number."""
        for name, tracker in list(self.kept.items()):
            self._try(name, partial(tracker.log, step, found))

    def close(self, done: bool) -> None:
        """End the run. done: whether it is complete."""
        for name, tracker in list(self.kept.items()):
            self._try(name, partial(tracker.close, done))

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a run never fails because of a tracker
            self.kept.pop(name, None)
            self.say(f"{name} tracks no more: {' '.join(str(error).split()) or repr(error)}")


class Lines:
    """A JSON line per block."""

    def __init__(self, path: Path, again: bool):
        self.path = path
        if not again:
            path.write_text("")

    def log(self, step: int, values: Values) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"block": step, **values}) + "\n")

    def close(self, done: bool) -> None:
        pass
