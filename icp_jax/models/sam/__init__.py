"""Segment Anything (ViT-B, L and H). Only the image encoder's blocks are pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from icp_jax.models.sam.config import SamConfig
from icp_jax.models.sam.encoder import Block, Embed, Neck
from icp_jax.models.sam.model import apply_sam, encode_image, predict_masks
from icp_jax.models.spec import Family, LinearSpec, rearrangements

__all__ = ["SamConfig", "apply_sam", "encode_image", "make", "predict_masks"]


def make(hf_config: Mapping[str, Any]) -> Family:
    """The SAM family for a `config.json`: pixels in, image embedding out.

    The context counts patches. Global blocks are variants of the windowed block.
    """
    vision = SamConfig.from_hf(hf_config).vision
    whole = Block(vision, 0)
    every = range(vision.num_hidden_layers)
    return Family(
        name="sam",
        n_blocks=vision.num_hidden_layers,
        hidden_size=vision.hidden_size,
        context=vision.grid**2,
        tied=False,
        embed=Embed(vision),
        block=Block(vision, vision.window_size),
        head=Neck(vision),
        linears=(
            LinearSpec("qkv", tap="qkv_in", role="qkv"),
            LinearSpec("proj", tap="proj_in", role="o"),
            LinearSpec("lin1", tap="lin1_in", role="f1"),
            LinearSpec("lin2", tap="lin2_in", role="f2"),
        ),
        rearrangements=rearrangements(
            ("qkv", "o", "f1", "f2"),
            "qkvof1-f2 qkvo-f2 qkvo-f1 qkvo-f1f2 "
            "qkv-f2 qkv-f1 qkv-o qkv-of1 qkv-of2 qkv-of1f2 qkv-f1f2",
        ),
        variants=tuple((t, whole) for t in every if vision.window(t) == 0),
        kind="vision",
        side=vision.image_size,
        keys=tuple((vision.window(t) or vision.grid) ** 2 for t in every),
        alpha=0.85,
        beta=0.0,
    )
