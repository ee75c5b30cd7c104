"""The library: load, prune, evaluate, save, on a param tree in memory."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from icp_jax import data
from icp_jax.config import (
    CalibrationConfig,
    CompensateConfig,
    Dtype,
    EvalConfig,
    MemoryConfig,
    PruneConfig,
    QuantConfig,
    RunConfig,
    check,
)
from icp_jax.core.outcomes import BlockReport
from icp_jax.data import inputs
from icp_jax.data.hub import resolve
from icp_jax.errors import InputError
from icp_jax.evaluation.perplexity import Perplexity, perplexity
from icp_jax.model import Model, TreeSink
from icp_jax.runs.export import save
from icp_jax.runs.job import job
from icp_jax.streaming import mesh
from icp_jax.streaming.loop import Hooks, Progress, prune_blocks
from icp_jax.streaming.passes import compute_dtype
from icp_jax.streaming.source import FolderSource

if TYPE_CHECKING:
    from icp_jax.evaluation.iou import Prompt, Segmentation

__all__ = ["calibrate", "evaluate", "load", "prune", "save"]


def load(model: str | Path, dtype: Any = None) -> Model:
    """A model from a Hugging Face folder or hub id, as a Flax param tree of NumPy arrays.

    dtype: what to cast the leaves to; unset, they stay as stored. Raises InputError or
    ConversionError.
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
) -> np.ndarray:
    """Calibration samples, see `CalibrationConfig.data`: tokens `[samples, T]`, by the model's
    tokenizer, or pixels `[samples, 3, S, S]` of images. Raises InputError.
    """
    config = CalibrationConfig(str(source), samples, seq_len, seed)
    return inputs.calibration(check(RunConfig(calibration=config)).calibration, model)


def prune(
    model: Model,
    tokens: np.ndarray,
    config: PruneConfig | None = None,
    compensation: CompensateConfig | None = None,
    quant: QuantConfig | None = None,
    *,
    memory: MemoryConfig | None = None,
    dtype: Dtype = "auto",
    seed: int | None = None,
    devices: int | None = None,
    progress: Progress = lambda block, phase, done, total, loss: None,
    **settings: Any,
) -> tuple[Model, list[BlockReport]]:
    """Prune a model in memory on tokens `[N, T]`, or pixels `[N, 3, S, S]`; it stays as it is.

    memory: where the two streams live, and in what precision. `device` and `host` in it, and
    `packed` in quant, are for `prune_folder` and refused here. devices: how many share the work.
    settings: fields of PruneConfig, such as `sparsity=0.5, method="wanda"`. Returns the pruned
    model, with leaves in the dtypes of the given one, and a report of every block.
    """
    run = RunConfig(
        prune=dataclasses.replace(PruneConfig() if config is None else config, **settings),
        quant=QuantConfig() if quant is None else quant,
        compensate=CompensateConfig() if compensation is None else compensation,
        memory=MemoryConfig() if memory is None else memory,
        dtype=dtype,
        seed=seed,
        devices=devices,
    )
    run = check(run)
    if run.memory.device or run.memory.host:
        raise InputError("memory.device and memory.host are for prune_folder: set streams instead")
    if run.quant.packed:
        raise InputError("quant.packed is for files: use prune_folder or icp-jax prune instead")
    tokens = inputs.checked(model, tokens)
    sink = TreeSink(model.params)
    hooks, several = Hooks(progress), mesh.choose(run.devices)
    reports = prune_blocks(model, sink, tokens, job(model, run), hooks, several)
    return dataclasses.replace(model, params=sink.params), reports


def evaluate(
    model: Model | FolderSource | str | Path,
    data_or_windows: str | Path | np.ndarray,
    *,
    seq_len: int | None = None,
    prompt: Prompt | None = None,
    limit: int | None = None,
    seed: int | None = None,
    dtype: Dtype = "auto",
    progress: Progress = lambda block, phase, done, total, loss: None,
) -> Perplexity | Segmentation:
    """Perplexity of a language model, IoU of SAM's masks; in memory, a folder, a file or a hub id.

    data_or_windows: wikitext2, ptb, c4, a file or folder, or token windows `[W, T]`; for SAM
    sa1b:DIR or coco:DIR. prompt, limit and seed are those of `segmentation`, for SAM alone;
    seq_len is for a text that is to be cut. Raises InputError.
    """
    config = check(EvalConfig(seq_len, prompt, limit, seed, dtype))
    if not isinstance(model, str | Path):
        return _evaluate(model, data_or_windows, config, progress)
    with closing(FolderSource(resolve(str(model)))) as source:
        return _evaluate(source, data_or_windows, config, progress)


def _evaluate(
    source: Model | FolderSource,
    given: str | Path | np.ndarray,
    config: EvalConfig,
    progress: Progress,
) -> Perplexity | Segmentation:
    if source.family.kind == "vision":
        return _segmentation(source, given, config, progress)
    for name in ("prompt", "limit", "seed"):
        if getattr(config, name) is not None:
            raise InputError(f"{name} is for SAM, and this model reads text: leave it out")
    vocabulary = data.vocabulary(source.config)
    if isinstance(given, np.ndarray):
        if config.seq_len is not None:
            raise InputError("seq_len is for a text: windows are taken as they are, leave it out")
        windows = inputs.checked(source, given)
    else:
        encode = data.Encoder(source.folder, vocabulary, progress)
        windows = data.evaluation_windows(str(given), config.seq_len, source.family.context, encode)
    return perplexity(source, windows, dtype=config.dtype, progress=progress)


def _segmentation(
    source: Model | FolderSource, given: Any, config: EvalConfig, progress: Progress
) -> Segmentation:
    from icp_jax.evaluation.iou import segmentation

    if config.seq_len is not None:
        raise InputError("seq_len is for text, and this model reads images: leave it out")
    if not isinstance(given, str | Path):
        raise InputError("SAM is evaluated on sa1b:DIR or coco:DIR, not on an array")
    return segmentation(
        source,
        str(given),
        prompt=config.prompt or "point",
        limit=config.limit,
        seed=config.seed or 0,
        dtype=compute_dtype(config.dtype),
        progress=progress,
    )
