"""The settings of a run as frozen dataclasses; their docstrings are the command line's help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16"]
MethodName = Literal["icp", "sparsegpt", "wanda", "magnitude"]


@dataclass(frozen=True)
class PruneConfig:
    """What is pruned, how far, and by which method."""

    method: MethodName = "icp"
    """icp, or one of its baselines."""
    sparsity: float | None = None
    """Share of zeros in the linears of the blocks, in [0, 1). Unset: 0.7, or the pattern's."""
    pattern: str | None = None
    """n:m, such as 2:4: keep n of every m consecutive inputs. Instead of sparsity, alpha, beta."""
    alpha: float | None = None
    """Last block's share of the mean sparsity; 1 is uniform.
    Unset: 0.691 for icp (SAM: 0.85), else 1."""
    beta: float | None = None
    """Share of their sparsity that layers give up to others.
    Unset: 0.2 for icp, else (and for SAM) 0."""
    rearrange: str | None = None
    """Which layers give and which take, GIVES-TAKES. Unset: the family's own, qkv-f2 for OPT."""
    damping: float | None = None
    """Added to the diagonal of H, as a share of its mean (icp and sparsegpt). Unset: 0.01."""
    block_size: int | None = None
    """Inputs whose mask SparseGPT chooses together (icp and sparsegpt). Unset: 128."""

    @property
    def structured(self) -> bool:
        """Whether the zeros follow an n:m pattern."""
        return self.pattern not in (None, "unstructured")


@dataclass(frozen=True)
class CompensateConfig:
    """How block t+1 is tuned after block t is pruned (icp only)."""

    epochs: int | None = None
    """Passes over the calibration samples; 0 turns compensation off. Unset: 1."""
    lr: float | None = None
    """Adam's learning rate in the first epoch. Unset: 1e-4."""
    gamma: float | None = None
    """The learning rate's factor after each epoch. Unset: 0.87."""


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
    seed: int | None = None
    """The order of the samples in compensation (icp only). Unset: 0."""
    devices: int | None = None
    """Devices that share the samples and the solver's rows. Unset: one; with several hosts all."""


@dataclass(frozen=True)
class EvalConfig:
    """How a model is measured."""

    seq_len: int | None = None
    """Tokens a window. Unset: the model's context, at most 2048."""
    prompt: Literal["point", "box"] | None = None
    """SAM: what points at each object. Unset: point."""
    limit: int | None = None
    """SAM: at most so many images."""
    seed: int | None = None
    """SAM: of the points that are drawn. Unset: 0."""
    dtype: Dtype = "auto"
    """What blocks compute in; auto is bfloat16 on GPU and TPU, float32 on CPU."""
