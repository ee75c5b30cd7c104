"""The settings of a run as frozen dataclasses. The field docstrings are the help texts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16"]
MethodName = Literal["icp", "icp+", "alps", "sparsegpt", "wanda", "magnitude"]
SolverName = Literal["sparsegpt", "alps"]


@dataclass(frozen=True)
class PruneConfig:
    """Pruning method, sparsity, and how the sparsity is allocated to layers."""

    method: MethodName = "icp"
    """Pruning method: icp; icp+, which prunes each block in steps and tunes it after each; alps,
    which prunes each layer with the least error and tunes nothing; or one of three baselines."""
    sparsity: float | None = None
    """Fraction of weights to set to zero in the blocks' linear layers, in [0, 1): the mean over the
    layers that are chosen. Default: 0.7, or what the pattern implies."""
    pattern: str | None = None
    """n:m pattern, such as 2:4: keep n of every m consecutive inputs. Replaces sparsity, alpha,
    beta and rearrange. Default: unstructured."""
    alpha: float | None = None
    """Sparsity of the last pruned block as a fraction of the mean sparsity; 1 is uniform.
    Default: 0.691 for icp (SAM: 0.85), 1 for other methods."""
    beta: float | None = None
    """Fraction of its sparsity that a layer gives up to other layers of the block; 0 is uniform.
    Default: 0.2 for icp on language models, else 0."""
    rearrange: str | None = None
    """Layers that give up sparsity and layers that take it (see beta), as GIVES-TAKES, such as
    qkv-f2. Default: the model family's own."""
    damping: float | None = None
    """Damping of the Hessian (icp, icp+, alps and sparsegpt), as a fraction of its mean
    diagonal. Default: 0.01."""
    block_size: int | None = None
    """Number of inputs per SparseGPT mask block (icp, icp+ and sparsegpt). Default: 128."""
    include: tuple[str, ...] = ()
    """Prune only the layers whose name matches the glob, such as 'blocks.*.fc2'. Repeat the option,
    or separate globs with commas. Default: all layers."""
    exclude: tuple[str, ...] = ()
    """Leave the layers as they are whose name matches the glob, such as 'blocks.0.*': dense, not
    quantized, and not counted in the sparsity. Default: none."""
    sparsity_of: tuple[str, ...] = ()
    """GLOB=S gives the matching layers a sparsity of their own, such as 'blocks.*.fc2=0.5'. The
    other layers make up for them, so that the mean stays the sparsity asked for. Default: none."""
    keep_first: int = 0
    """Number of blocks at the start that are left as they are. Default: 0."""
    keep_last: int = 0
    """Number of blocks at the end that are left as they are. Default: 0."""
    solver: SolverName | None = None
    """How icp and icp+ prune each layer: sparsegpt, or alps, which loses less of a layer's output
    and takes more time. Default: sparsegpt."""

    @property
    def structured(self) -> bool:
        """Whether the zeros follow an n:m pattern."""
        return self.pattern not in (None, "unstructured")


@dataclass(frozen=True)
class CompensateConfig:
    """How block t+1 is tuned after block t is pruned (icp and icp+)."""

    epochs: int | None = None
    """Passes over the calibration samples per block (icp and icp+); 0 turns compensation off.
    Default: 1 for icp, and 0 for icp+, which tunes a block while it is pruned."""
    lr: float | None = None
    """Learning rate of Adam in the first epoch (icp and icp+).
    Default: 5e-4."""
    gamma: float | None = None
    """Factor on the learning rate after each epoch (icp and icp+). Default: 0.87."""


@dataclass(frozen=True)
class RetuneConfig:
    """How a block is pruned in steps, and tuned after each with its zeros held (icp+ only)."""

    epochs: int | None = None
    """Passes over the calibration samples after each step (icp+ only); 0 turns the re-tune off.
    Default: 1."""
    lr: float | None = None
    """Learning rate of Adam in the first epoch (icp+ only). Default: 1e-3."""
    gamma: float | None = None
    """Factor on the learning rate after each epoch (icp+ only). Default: 0.87."""
    steps: int | None = None
    """Steps in which a block is pruned (icp+ only). Later steps take fewer weights: of 3 steps,
    the shares are 5/9, 8/9 and all of the zeros. Default: 3."""


@dataclass(frozen=True)
class GlobalConfig:
    """How all blocks are tuned together after the last one is pruned, with the zeros held."""

    epochs: int = 0
    """Passes over the calibration windows that tune all blocks together, until the pruned model
    predicts what the dense one does (language models only). Their last tenth is held out, and
    decides which epoch is kept. Default: 0."""
    lr: float | None = None
    """Highest learning rate of Adam in the global pass; it rises over a tenth of the steps, and
    falls as a cosine. Default: 5e-4."""
    batch: int | None = None
    """Windows of a step of the global pass. Default: 1."""


@dataclass(frozen=True)
class CalibrationConfig:
    """Calibration data for the statistics and the compensation."""

    data: str = "c4"
    """Calibration data: c4, wikitext2, ptb, or a path to .txt, .jsonl[.gz], .npy token ids or an
    Arrow folder; or self:N, for N windows that the model writes itself. For SAM: a folder of
    images, sa1b:DIR or coco:DIR."""
    samples: int | None = None
    """Number of calibration windows (or images).
    Default: 128, or all rows if the data is at most 128 token rows of exactly one window."""
    seq_len: int | None = None
    """Tokens per calibration window.
    Default: the rows' length of a 2-D .npy, else the model's context, at most 2048."""
    seed: int = 0
    """Random seed for drawing calibration windows or images. Default: 0."""
    overlap: bool = False
    """Draw each window from anywhere in a text, as published code does: windows may overlap.
    Default: windows do not overlap if the text is long enough."""

    @property
    def own(self) -> int | None:
        """The number of windows in `self:N`; None for other data."""
        found = re.fullmatch(r"self:([0-9]{1,9})", self.data)
        return int(found[1]) if found else None

    @property
    def count(self) -> int:
        """Number of samples to plan with: `samples`, N of `self:N`, or 128."""
        return self.samples or self.own or 128


@dataclass(frozen=True)
class QuantConfig:
    """Quantization of the kept weights, in the same pass as the pruning."""

    bits: int | None = None
    """Bits per kept weight, 2 to 8. Default: no quantization."""
    group: int | None = None
    """Inputs per quantization scale: 32, 64 or 128. Default: one scale per output channel."""
    symmetric: bool = False
    """Use symmetric grids, without zero points."""
    search: bool = False
    """Search each grid's range for the least rounding error instead of covering all weights."""
    packed: bool = False
    """Export packed integers (compressed-tensors) instead of weights in the source's dtype."""


@dataclass(frozen=True)
class MemoryConfig:
    """Where the dense and sparse streams of hidden states are kept, and within what memory."""

    streams: Literal["auto", "device", "host", "disk"] = "auto"
    """Where the dense and sparse streams are kept. auto: the first of device, host and disk with
    enough room."""
    stream_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the streams. bfloat16 halves their memory."""
    batch_tokens: int | None = None
    """Tokens per forward batch and device. Default: 1024 on CPU, else 4096, or what fits."""
    remat: bool | None = None
    """Recompute attention scores in the backward pass of compensation: less memory, about a third
    more time. Default: only if compensation does not fit otherwise."""
    device: str = ""
    """Limit on device memory, such as 8GiB; streams and batches are chosen to fit.
    Default: the free memory of an accelerator; no limit on CPU."""
    host: str = ""
    """Limit on host memory, such as 32GiB; streams and batches are chosen to fit.
    Default: the free memory beside an accelerator; no limit on CPU."""


@dataclass(frozen=True)
class RunConfig:
    """One pruning run."""

    model: str = ""
    """Hugging Face folder or hub id, a .gguf file, or a SAM .pth file."""
    out: str = ""
    """Output folder. It must not exist."""
    prune: PruneConfig = field(default_factory=PruneConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    compensate: CompensateConfig = field(default_factory=CompensateConfig)
    retune: RetuneConfig = field(default_factory=RetuneConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    dtype: Dtype = "auto"
    """Compute dtype of the blocks. auto: bfloat16 on GPU and TPU, float32 on CPU."""
    seed: int | None = None
    """Random seed for the order of the samples in tuning (icp, icp+ and the global pass).
    Default: 0."""
    devices: int | None = None
    """Number of devices to share the samples and the solver's rows.
    Default: 1, or all devices with several hosts."""
    global_pass: GlobalConfig = field(default_factory=GlobalConfig)


@dataclass(frozen=True)
class EvalConfig:
    """How a model is evaluated."""

    seq_len: int | None = None
    """Tokens per window.
    Default: the rows' length of a 2-D .npy, else the model's context, at most 2048."""
    prompt: Literal["point", "box"] | None = None
    """Prompt for each object (SAM only). Default: point."""
    limit: int | None = None
    """Maximum number of windows or images, the first ones. Default: all."""
    seed: int | None = None
    """Random seed for drawing points (SAM on COCO only). Default: 0."""
    dtype: Dtype = "auto"
    """Compute dtype of the blocks. auto: bfloat16 on GPU and TPU, float32 on CPU."""
