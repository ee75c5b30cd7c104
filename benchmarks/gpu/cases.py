"""The runs of the stage `same`: small models, each pruned with settings of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import sam_shapes

WINDOWS, LENGTH = 16, 64  # of calibration; the perplexity is of as many windows
IMAGES = 4
GROUPED = {  # a Llama whose key heads each serve three query heads
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
SAM = Path(__file__).parents[1] / "assets" / "sam-shapes"


class Case(NamedTuple):
    """One run."""

    model: str  # opt, llama or sam
    dtype: str
    pattern: str = ""
    packed: bool = False

    @property
    def name(self) -> str:
        more = f" {self.pattern}, 4 bits" if self.pattern else ""
        return f"{self.model} {self.dtype}{more}{', packed' if self.packed else ''}"

    @property
    def folder(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.name)


CASES = (
    Case("llama", "float32"),
    Case("llama", "bfloat16"),
    Case("llama", "float32", "2:4"),
    Case("llama", "float32", "2:4", packed=True),
    Case("opt", "float32"),
    Case("opt", "bfloat16"),
    Case("opt", "float32", "2:4"),
    Case("sam", "float32"),
    Case("sam", "bfloat16"),
)
TINY = CASES[2:4]
KILLED = CASES[2]


def model(kind: str, scratch: Path) -> Path:
    """The folder of a model; the Llama is made from a seed."""
    from icp_jax.demo import BUNDLED

    folder = {"opt": BUNDLED, "sam": SAM}.get(kind, scratch / kind)
    if not folder.exists():
        rng = np.random.default_rng(0)

        def tensor(placed: Any) -> np.ndarray:
            drawn = rng.standard_normal(placed.shape, np.float32)
            if len(placed.shape) == 1:
                return 1 + drawn / 10
            return drawn / np.float32(placed.shape[-1] ** 0.5)

        common.write_checkpoint(folder, GROUPED, "float32", tensor)
    return folder


def samples(kind: str, scratch: Path) -> tuple[Path, np.ndarray | None]:
    """(calibration data, windows `[n, T]` to measure the perplexity on; None for images)."""
    if kind == "sam":
        folder = scratch / "scenes"
        if not folder.exists():
            folder.mkdir()
            for seed in range(IMAGES):
                sam_shapes.Image.fromarray(sam_shapes.scene(seed)[0]).save(folder / f"{seed}.png")
        return folder, None
    path = scratch / f"{kind}.npy"
    if kind == "opt":
        from icp_jax import api

        bundled = model(kind, scratch)
        found = [
            api.calibrate(api.load(bundled), bundled / text, samples=WINDOWS, seq_len=LENGTH)
            for text in ("calibration.txt", "heldout.txt")
        ]
    else:
        rng = np.random.default_rng(1)
        found = list(rng.integers(3, GROUPED["vocab_size"], (2, WINDOWS, LENGTH), np.int32))
    np.save(path, found[0])
    return path, found[1]


def config(case: Case, scratch: Path, out: Path) -> Any:
    """The settings of a run into `out`."""
    from icp_jax import CalibrationConfig, CompensateConfig, PruneConfig, QuantConfig, RunConfig

    data, windows = samples(case.model, scratch)
    few = {"samples": IMAGES} if windows is None else {"samples": WINDOWS, "seq_len": LENGTH}
    pruned = PruneConfig(pattern=case.pattern) if case.pattern else PruneConfig(sparsity=0.5)
    bits = {"bits": 4, "group": 32} if case.pattern else {}
    if case.model == "llama":  # its widths are no multiples of 64
        bits.pop("group", None)
    return RunConfig(
        model=str(model(case.model, scratch)),
        out=str(out),
        prune=pruned,
        quant=QuantConfig(**bits, packed=case.packed),
        compensate=CompensateConfig(lr=1e-4),
        calibration=CalibrationConfig(str(data), **few),
        dtype=case.dtype,
    )


def words(given: Any) -> list[str]:
    """The same settings as words of the command line, for the runs that are killed."""
    calibration = given.calibration
    asked = ["prune", given.model, given.out, "--dtype", given.dtype, "--json"]
    asked += ["--pattern", given.prune.pattern, "--bits", str(given.quant.bits)]
    asked += ["--data", calibration.data]
    asked += ["--samples", str(calibration.samples), "--seq-len", str(calibration.seq_len)]
    return [*asked, "--compensate.lr", str(given.compensate.lr)]


def record(out: Path) -> dict[str, Any]:
    """The run's own record."""
    return json.loads((out / "icp_run.json").read_text())
