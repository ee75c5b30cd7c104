"""The settings of a run: frozen dataclasses that the command line and `configs/` fill in."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from icp_jax.errors import InputError

Dtype = Literal["auto", "float32", "bfloat16"]
MethodName = Literal["icp", "sparsegpt", "wanda", "magnitude"]


@dataclass(frozen=True)
class PruneConfig:
    """What is pruned, how far, and by which method."""

    method: MethodName = "icp"
    """icp, or one of its baselines."""
    sparsity: float = 0.7
    """Share of zeros in the linears of the blocks, in [0, 1)."""
    pattern: str | None = None
    """n:m, such as 2:4: keep n of every m consecutive inputs. Replaces sparsity, alpha, beta."""
    alpha: float | None = None
    """Last block's share of the mean sparsity; 1 is uniform.
    Unset: 0.691 for icp (SAM: 0.85), else 1."""
    beta: float | None = None
    """Share of their sparsity that layers give up to others.
    Unset: 0.2 for icp, else (and for SAM) 0."""
    rearrange: str | None = None
    """Which layers give and which take, GIVES-TAKES. Unset: the family's own, qkv-f2 for OPT."""
    damping: float = 0.01
    """Added to the diagonal of H, as a share of its mean."""
    block_size: int = 128
    """Inputs whose mask SparseGPT chooses together."""


@dataclass(frozen=True)
class CompensateConfig:
    """How block t+1 is tuned after block t is pruned (icp only)."""

    epochs: int = 1
    """Passes over the calibration samples; 0 turns compensation off."""
    lr: float = 1e-4
    """Adam's learning rate in the first epoch."""
    gamma: float = 0.87
    """The learning rate's factor after each epoch."""


@dataclass(frozen=True)
class CalibrationConfig:
    """The text, or the images, that the statistics and the compensation see."""

    data: str = "c4"
    """c4, wikitext2, ptb, or a path: .txt, .jsonl[.gz], .npy of token ids, or an Arrow folder.
    For SAM a folder of images, sa1b:DIR or coco:DIR."""
    samples: int | None = None
    """Windows, or images, drawn from it.
    Unset: 128, or as many as there are rows of token ids that are exactly windows."""
    seq_len: int | None = None
    """Tokens a window. Unset: the model's context, at most 2048."""
    seed: int = 0
    """Which windows or images are drawn."""

    @property
    def count(self) -> int:
        """Samples to plan with: as many as are set, or 128."""
        return 128 if self.samples is None else self.samples


@dataclass(frozen=True)
class QuantConfig:
    """Rounding the kept weights to integer grids, inside the same walk."""

    bits: int | None = None
    """2 to 8 bits a weight. Unset: no quantization."""
    group: int | None = None
    """32, 64 or 128 inputs that share a scale. Unset: one scale an output channel."""
    symmetric: bool = False
    """Zero is the middle of the grid."""
    search: bool = False
    """Choose the range of least rounding error, not the whole one."""
    packed: bool = False
    """Export packed integers (compressed-tensors) instead of weights in the source's dtype."""


@dataclass(frozen=True)
class MemoryConfig:
    """Where the hidden states of the calibration samples are kept, and how."""

    streams: Literal["auto", "device", "host", "disk"] = "auto"
    """The two streams' place; auto is the first of these that has room."""
    stream_dtype: Literal["float32", "bfloat16"] = "float32"
    """Their precision: bfloat16 halves them."""
    batch_tokens: int | None = None
    """Tokens sent through a block at once by each device, where that is free to choose.
    Unset: 1024 on the CPU, else 4096."""
    remat: bool | None = None
    """Compute attention's scores again for compensation's gradient: less memory, a third more time.
    Unset: where it would not fit otherwise."""
    device: str = ""
    """What the run may take of the device's memory, such as 8GiB: place and batch are made to fit.
    Unset: on an accelerator what is free there, on the CPU no limit."""
    host: str = ""
    """The same for the host's memory."""


@dataclass(frozen=True)
class RunConfig:
    """One pruning run."""

    model: str = ""
    """A Hugging Face folder or hub id, or a .pth file of SAM's."""
    out: str = ""
    """The folder to write; it must not exist."""
    prune: PruneConfig = field(default_factory=PruneConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    compensate: CompensateConfig = field(default_factory=CompensateConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    dtype: Dtype = "auto"
    """What blocks compute in; auto is bfloat16 on GPU and TPU, float32 on CPU."""
    seed: int = 0
    """The order of the samples in compensation."""
    devices: int | None = None
    """Devices that share the samples and the solver's rows. Unset: one; with several hosts all."""


def check(config: RunConfig) -> None:
    """Raises InputError, in one line, for settings that no model could make sense of."""
    p, c, k, q = config.prune, config.compensate, config.calibration, config.quant
    m = config.memory
    if q.bits is None and q != QuantConfig():
        raise InputError("quant settings need --quant.bits")
    if q.bits is not None and not 2 <= q.bits <= 8:
        raise InputError(f"quant.bits must be from 2 to 8, got {q.bits}")
    if q.group not in (None, 32, 64, 128):
        raise InputError(f"quant.group must be 32, 64 or 128, got {q.group}")
    if not 0 <= p.sparsity < 1:
        raise InputError(f"sparsity must be in [0, 1), got {p.sparsity:g}")
    if p.pattern not in (None, "unstructured") and (p.alpha is not None or p.beta is not None):
        raise InputError("alpha and beta apply to unstructured pruning only: drop them or pattern")
    parse_bytes("memory.device", m.device)
    parse_bytes("memory.host", m.host)
    for name, value, least in (
        ("prune.block_size", p.block_size, 1),
        ("compensate.epochs", c.epochs, 0),
        ("calibration.samples", 1 if k.samples is None else k.samples, 1),
        ("calibration.seq_len", 2 if k.seq_len is None else k.seq_len, 2),
        ("calibration.seed", k.seed, 0),
        ("memory.batch_tokens", 1 if m.batch_tokens is None else m.batch_tokens, 1),
        ("seed", config.seed, 0),
        ("devices", 1 if config.devices is None else config.devices, 1),
    ):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")
    for name, rate in (
        ("prune.damping", p.damping),
        ("compensate.lr", c.lr),
        ("compensate.gamma", c.gamma),
    ):
        if not 0 < rate < float("inf"):
            raise InputError(f"{name} must be a positive number, got {rate:g}")


UNITS = {"": 1, "b": 1}
UNITS |= {f"{p}ib": 1024**k for k, p in enumerate("kmgt", 1)}
UNITS |= {f"{p}b": 1000**k for k, p in enumerate("kmgt", 1)}


def parse_bytes(name: str, text: str) -> int | None:
    """`8GiB` as a number of bytes, and nothing as None. Raises InputError."""
    if not text:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]?i?b?)", text.strip().lower())
    if found is None or found[2] not in UNITS or not float(found[1]):
        raise InputError(f"{name} must be a size such as 8GiB or 500MB, got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])


def folder() -> Path:
    """Where the configs that come with the package lie: in the wheel, or in the repository."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def load(name: str) -> RunConfig:
    """`get_config()` of a Python file, given by path or by the name of a config in the package."""
    path = Path(name)
    if not path.is_file():
        known = sorted(p.stem for p in folder().glob("*.py"))
        path = folder() / f"{name}.py"
        if path.stem not in known:
            raise InputError(f"no config {name!r}: give a path, or one of {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(f"icp_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # a user's file: whatever it does wrong is bad input
        raise InputError(f"config {path}: {type(error).__name__}: {error}") from None
    if not isinstance(config, RunConfig):
        raise InputError(f"config {path}: get_config() must return an icp_jax.RunConfig")
    return config
