"""The tensor names of SAM in Hugging Face's and Meta's checkpoints, and configs from shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converters.rules import ConversionError


@dataclass(frozen=True)
class Spelling:
    """The parts of tensor names that differ between sources."""

    encoder: str
    blocks: str
    patch: str
    norm: str
    neck: tuple[str, ...]  # conv, norm, conv, norm
    points: str
    mask: tuple[str, ...]  # conv, norm, conv, norm, conv
    upscale: tuple[str, ...]  # conv, norm, conv
    ends: bool  # perceptrons have proj_in, layers, proj_out; else only layers
    frequencies: tuple[tuple[str, str], ...]  # (torch name, leaf); at least one exists
    optional: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)

    def perceptron(self, depth: int) -> list[str]:
        if not self.ends:
            return [f"layers.{k}" for k in range(depth)]
        return ["proj_in", *(f"layers.{k}" for k in range(depth - 2)), "proj_out"]


HUGGING_FACE = Spelling(
    encoder="vision_encoder",
    blocks="layers",
    patch="patch_embed.projection",
    norm="layer_norm",
    neck=("neck.conv1", "neck.layer_norm1", "neck.conv2", "neck.layer_norm2"),
    points="point_embed",
    mask=(
        "mask_embed.conv1",
        "mask_embed.layer_norm1",
        "mask_embed.conv2",
        "mask_embed.layer_norm2",
        "mask_embed.conv3",
    ),
    upscale=("upscale_conv1", "upscale_layer_norm", "upscale_conv2"),
    ends=True,
    frequencies=(
        ("shared_image_embedding.positional_embedding", "image"),
        ("prompt_encoder.shared_embedding.positional_embedding", "prompt"),
    ),
    prefixes=("", "sam."),
)
META = Spelling(
    encoder="image_encoder",
    blocks="blocks",
    patch="patch_embed.proj",
    norm="norm",
    neck=("neck.0", "neck.1", "neck.2", "neck.3"),
    points="point_embeddings",
    mask=tuple(f"mask_downscaling.{k}" for k in (0, 1, 3, 4, 6)),
    upscale=("output_upscaling.0", "output_upscaling.1", "output_upscaling.3"),
    ends=False,
    frequencies=(("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "prompt"),),
    optional=("pixel_mean", "pixel_std"),
    prefixes=("", "module."),
)


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Derive a `config.json` from the shapes of a checkpoint of Meta's, which has none.

    Raises ConversionError if a tensor that determines the config is missing.
    """
    try:
        at = next(p for p in META.prefixes if f"{p}image_encoder.pos_embed" in shapes)
        _, grid, _, width = shapes[f"{at}image_encoder.pos_embed"]
        channels, patch = shapes[f"{at}image_encoder.patch_embed.proj.weight"][1:3]
        tables: list[tuple[int, ...]] = []
        while f"{at}image_encoder.blocks.{len(tables)}.norm1.weight" in shapes:
            tables.append(shapes[f"{at}image_encoder.blocks.{len(tables)}.attn.rel_pos_h"])
        sides = [(length + 1) // 2 for length, _ in tables]
        whole = [i for i, side in enumerate(sides) if side == grid]
        out = shapes[f"{at}image_encoder.neck.0.weight"][0]
        image = {"image_size": grid * patch, "patch_size": patch}
        vision = {
            **image,
            "hidden_size": width,
            "output_channels": out,
            "num_hidden_layers": len(tables),
            "num_attention_heads": width // tables[0][1],
            "num_channels": channels,
            "qkv_bias": f"{at}image_encoder.blocks.0.attn.qkv.bias" in shapes,
            "mlp_dim": shapes[f"{at}image_encoder.blocks.0.mlp.lin1.weight"][0],
            "window_size": min(sides) if len(whole) < len(sides) else 0,
            "global_attn_indexes": whole,
            "num_pos_feats": out // 2,
        }
        decoder = {
            "hidden_size": out,
            "mlp_dim": shapes[f"{at}mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        }
        channels = shapes[f"{at}prompt_encoder.mask_downscaling.3.weight"][0]
    except StopIteration:
        raise ConversionError(
            "not a SAM checkpoint of Meta's: it has no tensor 'image_encoder.pos_embed'"
        ) from None
    except (KeyError, IndexError, ValueError) as error:
        raise ConversionError(f"not a SAM checkpoint of Meta's: {error}") from None
    return {
        "model_type": "sam",
        "vision_config": vision,
        "prompt_encoder_config": {**image, "hidden_size": out, "mask_input_channels": channels},
        "mask_decoder_config": decoder,
    }
