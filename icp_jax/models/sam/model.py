"""SAM as pure functions of one param tree.

params: {'embed', 'blocks': {'0': ...}, 'head', 'prompt', 'decoder', 'positions'}. 'positions'
holds the Fourier frequencies: 'image' for patches, 'prompt' for points and boxes. Some checkpoints
have only one of the two, which then serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icp_jax.arrays import AnyArray
from icp_jax.backend.products import full_precision
from icp_jax.models.sam.config import SamConfig
from icp_jax.models.sam.decoder import MaskDecoder
from icp_jax.models.sam.encoder import Block, Embed, Neck
from icp_jax.models.sam.prompt import PromptEncoder, grid_positions

Params = Mapping[str, Any]


def _run(module: nn.Module, params: Params, *args: Any) -> Any:
    with full_precision("float32"):
        return module.apply({"params": params}, *args)


def encode_image(
    config: SamConfig, params: Params, pixel_values: Float[AnyArray, "b c s s"]
) -> Float[Array, "b g g d"]:
    """Encode normalised, padded pixels to the image embedding, channels last."""
    vision = config.vision
    x = _run(Embed(vision), params["embed"], pixel_values)
    for t in range(vision.num_hidden_layers):
        x = _run(Block(vision, vision.window(t)), params["blocks"][str(t)], x)
    return _run(Neck(vision), params["head"], x)


def predict_masks(
    config: SamConfig,
    params: Params,
    image: Float[AnyArray, "b g g c"],
    points: Float[AnyArray, "b p n 2"] | None = None,
    labels: Int[AnyArray, "b p n"] | None = None,
    boxes: Float[AnyArray, "b p 4"] | None = None,
    masks: Float[AnyArray, "b m l l"] | None = None,
    multimask_output: bool = True,
) -> tuple[Float[Array, "b p k l l"], Float[Array, "b p k"]]:
    """Predict (mask logits at a quarter of the input's side, IoU) from embeddings and prompts.

    points, boxes: in pixels of the model's input. labels: 1 foreground, 0 background, -1 not a
    point, -10 ignored; unset: all 1. masks: logits, one per image (m = 1) or one per prompt.
    """
    tables = params["positions"]
    for_image = tables.get("image") or tables["prompt"]
    for_prompt = tables.get("prompt") or tables["image"]
    given = (for_prompt["embedding"], points, labels, boxes, masks)
    sparse, dense = _run(PromptEncoder(config.prompt), params["prompt"], *given)
    positions = grid_positions(config.prompt.grid, jnp.asarray(for_image["embedding"]))
    prompted = (image, positions, sparse, dense, multimask_output)
    return _run(MaskDecoder(config.decoder), params["decoder"], *prompted)


def apply_sam(
    config: SamConfig,
    params: Params,
    pixel_values: Float[AnyArray, "b c i i"],
    points: Float[AnyArray, "b p n 2"] | None = None,
    labels: Int[AnyArray, "b p n"] | None = None,
    boxes: Float[AnyArray, "b p 4"] | None = None,
    masks: Float[AnyArray, "b m l l"] | None = None,
    multimask_output: bool = True,
) -> tuple[Float[Array, "b p k l l"], Float[Array, "b p k"]]:
    """`encode_image`, then `predict_masks`; the same as `SamModel.forward` of transformers."""
    image = encode_image(config, params, pixel_values)
    return predict_masks(config, params, image, points, labels, boxes, masks, multimask_output)
