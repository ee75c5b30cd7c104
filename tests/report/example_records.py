"""Small records of runs and sweeps, as the package writes them, and a reader of pages."""

import dataclasses
import json
from html.parser import HTMLParser

from icp_jax.checks import flat
from icp_jax.config import CalibrationConfig, PruneConfig, RunConfig

VOID = {"meta", "link", "br"}
PHASES = ("dense", "compensate", "statistics", "prune", "sparse", "write")
LAYERS = ("q_proj", "fc1", "fc2")
CONFIG = RunConfig("models/opt-small", "out", PruneConfig("icp", 0.5, alpha=0.7, beta=0.2),
                   calibration=CalibrationConfig("text.txt", 6, 24))  # fmt: skip


def run_record(blocks=3, config=CONFIG, **more):
    """The record of a run. config: its settings. more: replaces fields of the record."""
    found = []
    for t in range(blocks):
        error = 0.01 * 1.7**t
        tuned = {"before": 0.2 + t, "after": 0.1 + t, "epochs": [0.2], "restored": ""}
        layers = [{"name": n, "size": 100, "zeros": 40 + 5 * k, "error": 0.1, "rungs": []}
                  for k, n in enumerate(LAYERS)]  # fmt: skip
        found.append({"block": t, "layers": layers, "error": error, "error_median": error * 0.9,
                      "error_p95": error * 3, "compensation": tuned if t else None,
                      "seconds": dict.fromkeys(PHASES, 0.25)})  # fmt: skip
    return {
        "config": dataclasses.asdict(config),
        "versions": {"python": "3.11.7", "icp-jax": "0.1.0"},
        "device": "cpu",
        "inputs": {"weights": {"model.safetensors": "ab" * 32}, "calibration_shape": [6, 24]},
        "plan": None,
        "sparsity": 0.45,
        "zeros": 135,
        "size": 300,
        "linears": {"bytes": 6_000_000, "packed_bytes": 2_950_000},
        "seconds": 6.5,
        "peak_host_mib": 512,
        "peak_device_mib": None,
        "remedies": [],
        "blocks": found,
        "texts": None,
    } | more


def write_run(folder, record):
    folder.mkdir(parents=True)
    (folder / "icp_run.json").write_text(json.dumps(record))
    return folder


def write_sweep(folder, settings, state="done"):
    """A folder of a sweep with a point for each of the settings."""
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps({"form": 1, "model": "models/opt-small"}))
    with (folder / "points.jsonl").open("w") as file:
        for k, point in enumerate(settings):
            sparsity = point.get("prune.sparsity", 0.5)
            row = {"key": str(k), "state": state, "settings": point, "device": "cpu",
                   "config": {**flat(CONFIG), **point, "out": ""}, "perplexity": 20 + k * sparsity,
                   "sparsity": sparsity, "errors": [0.1, 0.2], "seconds": 1.5,
                   "versions": {"python": "3.11.7"}}  # fmt: skip
            file.write(json.dumps(row) + "\n")
    return folder


class Page(HTMLParser):
    """A page, read: raises AssertionError if its elements do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.words = [], [], []
        self.attributes, self.pictures = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute twice in {tag}"
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [found["id"]] if "id" in found else []
        self.pictures += [found] if tag == "svg" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())
