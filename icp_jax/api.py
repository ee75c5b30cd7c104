"""The library: load, prune, evaluate, save, on a param tree in memory."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from icp_jax import data, inputs, mesh
from icp_jax.config import (
    CalibrationConfig,
    CompensateConfig,
    MemoryConfig,
    PruneConfig,
    QuantConfig,
    RunConfig,
    check,
)
from icp_jax.errors import InputError
from icp_jax.evaluation.perplexity import Perplexity, perplexity
from icp_jax.export import save
from icp_jax.model import Model, TreeSink
from icp_jax.pipeline import BlockReport, Progress, prune_blocks
from icp_jax.residency import FolderSource, resolve
from icp_jax.streaming.passes import compute_dtype

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
    check(RunConfig(calibration=config))
    return inputs.calibration(config, model)


def prune(
    model: Model,
    tokens: np.ndarray,
    config: PruneConfig | None = None,
    compensation: CompensateConfig | None = None,
    quant: QuantConfig | None = None,
    *,
    memory: MemoryConfig | None = None,
    dtype: str = "auto",
    seed: int = 0,
    devices: int | None = None,
    progress: Progress = lambda block, phase, done, total, loss: None,
    **settings: Any,
) -> tuple[Model, list[BlockReport]]:
    """Prune a model in memory on tokens `[N, T]`, or pixels `[N, 3, S, S]`; it stays as it is.

    memory: where the two streams live, and in what precision; `device` and `host` in it are for
    runs that are planned first, and refused here. devices: how many share the work.
    settings: fields of PruneConfig, such as `sparsity=0.5, method="wanda"`. Returns the pruned
    model, with leaves in the dtypes of the given one, and a report of every block.
    """
    config = dataclasses.replace(config or PruneConfig(), **settings)
    compensation = compensation or CompensateConfig()
    quant = quant or QuantConfig()
    memory = memory or MemoryConfig()
    if memory.device or memory.host:
        raise InputError("memory.device and memory.host are for prune_folder: set streams instead")
    run = RunConfig(prune=config, quant=quant, compensate=compensation, memory=memory, seed=seed)
    check(dataclasses.replace(run, devices=devices))
    tokens = inputs.checked(model, tokens)
    sink = TreeSink(model.params)
    reports = prune_blocks(
        model,
        sink,
        tokens,
        config,
        compensation,
        quant,
        dtype=dtype,
        seed=seed,
        memory=memory,
        progress=progress,
        devices=mesh.choose(devices),
    )
    return dataclasses.replace(model, params=sink.params), reports


def evaluate(
    model: Model | FolderSource | str | Path,
    data_or_windows: str | Path | np.ndarray,
    *,
    seq_len: int | None = None,
    prompt: Prompt = "point",
    limit: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
    progress: Progress = lambda block, phase, done, total, loss: None,
) -> Perplexity | Segmentation:
    """Perplexity of a language model, IoU of SAM's masks; in memory, a folder, a file or a hub id.

    data_or_windows: wikitext2, ptb, c4, a file or folder, or token windows `[W, T]`; for SAM
    sa1b:DIR or coco:DIR, and prompt, limit and seed are those of `segmentation`.
    """
    if isinstance(model, str | Path):
        with closing(FolderSource(resolve(str(model)))) as opened:
            return evaluate(
                opened,
                data_or_windows,
                seq_len=seq_len,
                prompt=prompt,
                limit=limit,
                seed=seed,
                dtype=dtype,
                progress=progress,
            )
    source = model
    if source.family.kind == "vision":
        from icp_jax.evaluation.iou import segmentation

        return segmentation(
            source,
            str(data_or_windows),
            prompt=prompt,
            limit=limit,
            seed=seed,
            dtype=compute_dtype(dtype),
            progress=progress,
        )
    data.vocabulary(source.config)
    if isinstance(data_or_windows, np.ndarray):
        windows = inputs.checked(source, data_or_windows)
    else:
        encode = data.Encoder(source.folder, data.vocabulary(source.config), progress)
        windows = data.evaluation_windows(
            str(data_or_windows), seq_len, source.family.context, encode
        )
    return perplexity(source, windows, dtype=dtype, progress=progress)
