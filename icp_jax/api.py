"""The library API: load, calibrate, prune, evaluate and save a model in memory."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from icp_jax import data
from icp_jax.backend import heap
from icp_jax.config import (
    CalibrationConfig,
    CompensateConfig,
    Dtype,
    EvalConfig,
    MemoryConfig,
    PruneConfig,
    QuantConfig,
    RetuneConfig,
    RunConfig,
    check,
)
from icp_jax.core.distill import DistillMetrics, steps
from icp_jax.core.distill import distill as core_distill
from icp_jax.core.outcomes import BlockReport
from icp_jax.data import inputs
from icp_jax.data.hub import resolve
from icp_jax.errors import InputError
from icp_jax.evaluation.perplexity import Perplexity, perplexity
from icp_jax.evaluation.windows import check_tokens, check_vocabulary, evaluation_tokens
from icp_jax.model import Model, TreeSink
from icp_jax.phases import Progress
from icp_jax.runs import global_pass
from icp_jax.runs.export import save
from icp_jax.runs.job import job
from icp_jax.streaming import mesh
from icp_jax.streaming.job import Hooks
from icp_jax.streaming.loop import prune_blocks
from icp_jax.streaming.passes import compute_dtype
from icp_jax.streaming.source import FolderSource

if TYPE_CHECKING:
    from icp_jax.evaluation.iou import Prompt, Segmentation

__all__ = ["calibrate", "distill", "evaluate", "load", "prune", "save"]


def load(model: str | Path, dtype: Any = None) -> Model:
    """Load a model as a Flax param tree of NumPy arrays.

    model: Hugging Face folder or hub id, or a `.gguf` or SAM `.pth` file. dtype: cast the params to
    it. Default: the stored dtypes. Raises InputError or ConversionError.
    """
    with closing(FolderSource(resolve(str(model)))) as source:
        params = jax.tree.map(
            lambda leaf: np.array(leaf) if dtype is None else np.asarray(leaf).astype(dtype),
            source.tree(),
        )
        return Model(source.config, params, source.reader.layout, source.folder)


def calibrate(
    model: Model,
    source: str | Path,
    *,
    samples: int | None = None,
    seq_len: int | None = None,
    seed: int = 0,
    overlap: bool = False,
) -> np.ndarray:
    """Load calibration samples for a model.

    source: text, token ids or images, see `CalibrationConfig.data`; `self:N`: N windows that the
    model writes. samples: number of windows or images. Default: 128. seq_len: tokens per window.
    Default: the model's context, at most 2048. seed: for drawing them. overlap: see
    `CalibrationConfig`. Returns tokens `[samples, T]` int32, or pixels `[samples, 3, S, S]`
    float32. Raises InputError.
    """
    config = CalibrationConfig(str(source), samples, seq_len, seed, overlap)
    return inputs.calibration(check(RunConfig(calibration=config)).calibration, model)


def prune(
    model: Model,
    tokens: np.ndarray,
    config: PruneConfig | None = None,
    compensation: CompensateConfig | None = None,
    quant: QuantConfig | None = None,
    *,
    retune: RetuneConfig | None = None,
    memory: MemoryConfig | None = None,
    dtype: Dtype = "auto",
    seed: int | None = None,
    devices: int | None = None,
    progress: Progress = lambda block, phase, done, total, loss: None,
    **settings: Any,
) -> tuple[Model, list[BlockReport]]:
    """Prune a model in memory. The given model is not changed.

    tokens: `[N, T]`, or pixels `[N, 3, S, S]`. config: method and sparsity; its fields may be given
    as keywords, such as `sparsity=0.5, method="wanda"`. compensation, quant, retune, memory:
    see their classes; `memory.device`, `memory.host` and `quant.packed` are for `prune_folder`.
    dtype: compute dtype of the blocks. seed: of the order of the samples in tuning. Default: 0.
    devices: number of devices to share the work. Default: 1. progress: called with (block, phase,
    done, total, loss). Returns the pruned model, in the same dtypes, and a report of every block.
    Raises InputError.
    """
    run = RunConfig(
        prune=dataclasses.replace(PruneConfig() if config is None else config, **settings),
        quant=QuantConfig() if quant is None else quant,
        compensate=CompensateConfig() if compensation is None else compensation,
        retune=RetuneConfig() if retune is None else retune,
        memory=MemoryConfig() if memory is None else memory,
        dtype=dtype,
        seed=seed,
        devices=devices,
    )
    run = check(run)
    if run.memory.device or run.memory.host:
        raise InputError(
            "memory.device and memory.host are for prune_folder: set memory.streams instead"
        )
    if run.quant.packed:
        raise InputError("quant.packed is only for prune_folder and icp-jax prune: leave it out")
    tokens = inputs.checked(model, tokens)
    sink = TreeSink(model.params)
    hooks, several = Hooks(progress), mesh.choose(run.devices)
    reports = prune_blocks(model, sink, tokens, job(model, run), hooks, several)
    return dataclasses.replace(model, params=sink.params), reports


def distill(
    model: Model,
    dense: Model,
    tokens: np.ndarray,
    *,
    epochs: int = 1,
    lr: float = 5e-4,
    batch: int = 1,
    seed: int = 0,
    heldout: np.ndarray | None = None,
) -> tuple[Model, DistillMetrics]:
    """Tune all blocks of a pruned model together to predict what the dense one does.

    The zeros of the linears stay, and so do embedding and head. Both models, Adam's state and the
    hidden states are in memory; `icp-jax distill` needs one block on the device. tokens: `[N, T]`.
    lr: the highest rate; it rises over a tenth of the steps and falls as a cosine. batch: samples
    of a step. seed: of their order. heldout: samples `[M, T]` that decide which epoch's params are
    returned, or whether the given ones are. Default: the last tenth of the tokens, which are then
    not trained on. Returns (model, metrics). Raises InputError.
    """
    if model.family.kind == "vision":
        raise InputError("distill is for language models, and this one reads images")
    if jax.tree.map(np.shape, model.params) != jax.tree.map(np.shape, dense.params):
        raise InputError("the dense model has other shapes: give the model that was pruned")
    tokens = inputs.checked(model, tokens)
    if heldout is None:
        tokens, heldout = global_pass.split(tokens)
    heldout = inputs.checked(model, heldout)
    if epochs < 1 or not 0 < lr < np.inf:
        raise InputError(f"epochs must be at least 1 and lr positive, got {epochs} and {lr}")
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    order, rates = steps(len(tokens), epochs=epochs, lr=lr, batch=batch, seed=seed)
    params, metrics = _distill(
        model.family, model.params, dense.params, tokens, heldout, rates=rates, order=order
    )
    return dataclasses.replace(model, params=jax.device_get(params)), jax.device_get(metrics)


_distill = jax.jit(core_distill, static_argnums=0)


def evaluate(
    model: Model | FolderSource | str | Path,
    data_or_windows: str | Path | np.ndarray,
    *,
    seq_len: int | None = None,
    prompt: Prompt | None = None,
    limit: int | None = None,
    against: Model | FolderSource | str | Path | None = None,
    seed: int | None = None,
    dtype: Dtype = "auto",
    progress: Progress = lambda block, phase, done, total, loss: None,
) -> Perplexity | Segmentation:
    """Measure the perplexity of a language model, or the IoU of SAM's masks.

    model: in memory, a Hugging Face folder or hub id, or a `.gguf` or SAM `.pth` file.
    data_or_windows: wikitext2, ptb, c4, a path, or token windows `[W, T]`; for SAM, sa1b:DIR or
    coco:DIR. seq_len: tokens per window of a text. Default: the model's context, at most 2048.
    limit: use the first windows or images only; all if there are fewer. against: for text, a
    second model with the same vocabulary and tokenizer, such as the dense one, for the KL
    divergence from its predictions. prompt, seed: for SAM only, see `segmentation`. dtype: compute
    dtype of the blocks. Raises InputError.
    """
    config = check(EvalConfig(seq_len, prompt, limit, seed, dtype))
    with ExitStack() as stack:

        def opened(given: Model | FolderSource | str | Path) -> Model | FolderSource:
            if not isinstance(given, str | Path):
                return given
            return stack.enter_context(closing(FolderSource(resolve(str(given)))))

        source = opened(model)
        if source.family.kind == "vision":
            if against is not None:
                raise InputError("against is for text, but this model reads images: leave it out")
            return _segmentation(source, data_or_windows, config, progress)
        dense = None if against is None else opened(against)
        found = _perplexity(source, data_or_windows, dense, config, progress)
    heap.give_back()
    return found


def _perplexity(
    source: Model | FolderSource,
    given: str | Path | np.ndarray,
    dense: Model | FolderSource | None,
    config: EvalConfig,
    progress: Progress,
) -> Perplexity:
    for name in ("prompt", "seed"):
        if getattr(config, name) is not None:
            raise InputError(f"{name} is for SAM, but this model reads text: leave it out")
    data.vocabulary(source.config)
    if isinstance(given, np.ndarray) and config.seq_len is not None:
        raise InputError("seq_len is for text, but token windows are given: leave it out")
    if dense is not None:
        check_vocabulary(source, dense)
    windows = evaluation_tokens(source, given, config.seq_len, progress)
    if dense is not None:
        check_tokens(dense, given, windows, progress)
    windows = windows[: config.limit]
    return perplexity(source, windows, dtype=config.dtype, against=dense, progress=progress)


def _segmentation(
    source: Model | FolderSource, given: Any, config: EvalConfig, progress: Progress
) -> Segmentation:
    from icp_jax.evaluation.iou import segmentation

    if config.seq_len is not None:
        raise InputError("seq_len is for text, but this model reads images: leave it out")
    if not isinstance(given, str | Path):
        raise InputError("SAM is evaluated on images, not on an array: give sa1b:DIR or coco:DIR")
    return segmentation(
        source,
        str(given),
        prompt=config.prompt or "point",
        limit=config.limit,
        seed=config.seed or 0,
        dtype=compute_dtype(config.dtype),
        progress=progress,
    )
