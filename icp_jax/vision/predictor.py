"""Predict masks for prompts. An image is encoded once and then serves many prompts.

Blocks share compiled functions: one for windowed and one for global attention, at any depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from icp_jax.backend.products import full_precision
from icp_jax.errors import InputError
from icp_jax.models.sam import SamConfig, make, predict_masks
from icp_jax.vision import prompts
from icp_jax.vision.image_settings import ImageSettings, image_settings
from icp_jax.vision.process import Frame, binarise, postprocess, preprocess

PROMPTS = 32  # maximum prompts per call of the mask decoder


@runtime_checkable
class WholeModel(Protocol):
    """A whole model, in a folder or in memory."""

    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def folder(self) -> Path: ...
    def tree(self) -> dict[str, Any]: ...


class Prediction(NamedTuple):
    """Masks of one image for p prompts. The prompt axis exists only if the prompts had one."""

    masks: Bool[np.ndarray, "*p m h w"]  # at the size of the image
    iou: Float[np.ndarray, "*p m"]  # the model's own estimate
    low_res: Float[np.ndarray, "*p m s s"]  # logits, usable as the next `mask`


@partial(jax.jit, static_argnums=0)
def _apply(module, params, x):
    with full_precision(x.dtype.name):
        return module.apply({"params": params}, x)


def _float32(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)


_decode = jax.jit(predict_masks, static_argnums=0, static_argnames="multimask_output")


class SamPredictor:
    """Prompted segmentation with SAM, one image at a time.

    config: a `Model` or an open folder; or a `config.json` as a dict, which needs `params`.
    params: the whole tree, see `icp_jax.models.sam.model`. Default: the model's.
    dtype: compute dtype of the encoder; the mask decoder uses float32.
    settings: image preprocessing. Default: the model's own.
    Raises InputError.
    """

    def __init__(
        self,
        config: Any,
        params: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        settings: ImageSettings | None = None,
    ):
        folder = None
        if not isinstance(config, Mapping):
            if not hasattr(config, "tree"):
                raise InputError(
                    f"SamPredictor takes a Model, or a config and params, got {config!r:.80}"
                )
            folder = config.folder
            params = config.tree() if params is None else params
            config = config.config
        if config.get("model_type", "sam") != "sam":
            raise InputError(f"model type {config['model_type']!r} is not supported: give a SAM")
        if params is None:
            raise InputError("a config needs params: use SamPredictor(config, params)")
        self.family, self.config = make(config), SamConfig.from_hf(config)
        self.settings = settings or image_settings(self.family.side, folder, params.get("pixels"))
        prompted = {k: _float32(params[k]) for k in ("prompt", "decoder", "positions")}
        self.params, self.dtype = jax.device_put({**params, **prompted}), dtype
        self.where: Frame | None = None
        self.embedding: Float[Array, "1 g g c"] | None = None

    def set_image(self, image: Any) -> None:
        """Encode an image: a path, a PIL image or an RGB uint8 array `[h, w, 3]`.

        Raises InputError and keeps the previous image if the image is invalid.
        """
        pixels, where = preprocess(image, self.settings)
        x = _apply(self.family.embed, self.params["embed"], jnp.asarray(pixels[None], self.dtype))
        for t in range(self.family.n_blocks):
            x = _apply(self.family.block_at(t), self.params["blocks"][str(t)], x)
        x = _apply(self.family.head, self.params["head"], x)
        self.embedding, self.where = x.astype(jnp.float32), where

    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        mask: Any = None,
        multimask: bool = True,
        best: bool = False,
    ) -> Prediction:
        """Predict the masks of one or several prompts on the current image.

        points: `[n, 2]` or `[p, n, 2]`, (x, y) in pixels of the image. labels: `[n]` or `[p, n]`,
        1 foreground, 0 background, -1 padding; default: all foreground. boxes: `[4]` or `[p, 4]`,
        (left, top, right, bottom). mask: logits `[s, s]` or `[p, s, s]`, of the size of `low_res`.
        multimask: predict three masks per prompt instead of one. best: keep only the mask with the
        highest predicted IoU. Raises InputError.
        """
        if self.where is None or self.embedding is None:
            raise InputError("no image is set: call set_image first")
        ready, several = prompts.read(points, labels, boxes, mask)
        count = prompts.check(ready, self.where.original, 4 * self.config.prompt.grid)
        low_res, scores = self._run(ready, count, multimask)
        if best:
            chosen = np.argmax(scores, axis=1, keepdims=True)
            scores = np.take_along_axis(scores, chosen, axis=1)
            low_res = np.take_along_axis(low_res, chosen[..., None, None], axis=1)
        masks = np.stack([binarise(postprocess(logits, self.where)) for logits in low_res])
        out = Prediction(masks, scores, low_res)
        return out if several else Prediction(*(a[0] for a in out))

    def _run(
        self, given: dict[str, np.ndarray | None], count: int, multimask: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run the decoder on batches of prompts; the last batch is padded with copies."""
        scale = self.where.scale  # type: ignore[union-attr]
        points, labels, boxes, masks = (given[k] for k in ("points", "labels", "boxes", "masks"))
        arrays = {
            "points": None if points is None else (points * scale).astype(np.float32),
            "labels": None if labels is None else labels.astype(np.int32),
            "boxes": None if boxes is None else (boxes * np.tile(scale, 2)).astype(np.float32),
            "masks": None if masks is None else masks.astype(np.float32),
        }
        # powers of two, to compile few decoder shapes
        size, found = min(1 << (count - 1).bit_length(), PROMPTS), []
        for start in range(0, count, size):
            index = np.minimum(np.arange(start, start + size), count - 1)
            part = {k: None if a is None else a[None, index] for k, a in arrays.items()}
            params = {k: self.params[k] for k in ("prompt", "decoder", "positions")}
            out = _decode(self.config, params, self.embedding, **part, multimask_output=multimask)
            found.append([np.asarray(a[0])[: count - start] for a in out])
        low_res, scores = (np.concatenate(a) for a in zip(*found, strict=True))
        return low_res, scores
