"""SAM's configuration: the fields of `config.json` in use, by their Hugging Face names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from icp_jax.errors import InputError
from icp_jax.models.fields import check_fields
from icp_jax.models.layers import ACTIVATIONS

Part = TypeVar("Part")
KIND_OF = {  # annotation -> kind of field
    "int": "size",
    "int | None": "size?",
    "float": "number",
    "bool": "flag",
    "str": "word",
    "tuple[int, ...]": "counts",
}


@dataclass(frozen=True)
class VisionConfig:
    """The image encoder, a ViT with windowed and global blocks. Defaults: ViT-B."""

    hidden_size: int = 768
    output_channels: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 1024  # pixels per side; images are padded to a square
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    mlp_ratio: float = 4.0
    mlp_dim: int | None = None  # unset: mlp_ratio times hidden_size
    use_abs_pos: bool = True
    use_rel_pos: bool = True
    window_size: int = 14  # patches per side; 0: every block is global
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    num_pos_feats: int = 128  # frequencies of the random Fourier features

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        return int(self.hidden_size * self.mlp_ratio) if self.mlp_dim is None else self.mlp_dim

    def window(self, t: int) -> int:
        """The window of block t in patches per side; 0 for a global block."""
        return 0 if t in self.global_attn_indexes else self.window_size


@dataclass(frozen=True)
class PromptConfig:
    """The prompt encoder: points, boxes, masks."""

    hidden_size: int = 256
    image_size: int = 1024
    patch_size: int = 16
    mask_input_channels: int = 16
    num_point_embeddings: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class DecoderConfig:
    """The mask decoder: a two-way transformer, upscaling, and two kinds of heads."""

    hidden_size: int = 256
    hidden_act: str = "relu"
    mlp_dim: int = 2048
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    layer_norm_eps: float = 1e-6

    @property
    def mask_tokens(self) -> int:
        """One token for the single mask, one for each of the multiple masks."""
        return self.num_multimask_outputs + 1


@dataclass(frozen=True)
class SamConfig:
    """The config of the whole model. Hashable, as a static argument under jit."""

    vision: VisionConfig = VisionConfig()
    prompt: PromptConfig = PromptConfig()
    decoder: DecoderConfig = DecoderConfig()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> SamConfig:
        """Read a `config.json` dict; missing fields have transformers' defaults.

        Raises InputError for unsupported settings.
        """
        made = cls(
            _part(VisionConfig, config, "vision_config"),
            _part(PromptConfig, config, "prompt_encoder_config"),
            _part(DecoderConfig, config, "mask_decoder_config"),
        )
        _check(made)
        return made


def _part(cls: type[Part], config: Mapping[str, Any], key: str) -> Part:
    given = config.get(key) or {}
    if not isinstance(given, Mapping):
        raise InputError(f"config.json: {key} is not an object")
    known = {f.name: given[f.name] for f in fields(cls) if f.name in given}  # type: ignore[arg-type]
    for name in ("image_size", "patch_size"):
        value = known.get(name)
        if isinstance(value, list | tuple) and len(set(value)) == 1:
            known[name] = value[0]
        elif value is not None and not isinstance(value, int):
            raise InputError(f"{key}.{name} must be an integer or two equal ones, got {value}")
    kinds = {f.name: KIND_OF[str(f.type)] for f in fields(cls)}  # type: ignore[arg-type]
    check_fields(known, kinds | {"window_size": "count"}, f"{key}.")
    if "global_attn_indexes" in known:
        known["global_attn_indexes"] = tuple(known["global_attn_indexes"])
    return cls(**known)


def _check(config: SamConfig) -> None:
    vision, prompt, decoder = config.vision, config.prompt, config.decoder
    inner = decoder.hidden_size // decoder.attention_downsample_rate
    for what, whole, part in (
        ("vision_config: hidden_size", vision.hidden_size, vision.num_attention_heads),
        ("vision_config: image_size", vision.image_size, vision.patch_size),
        ("mask_decoder_config: hidden_size", decoder.hidden_size, decoder.num_attention_heads),
        ("mask_decoder_config: hidden_size, downsampled,", inner, decoder.num_attention_heads),
        ("mask_decoder_config: hidden_size", decoder.hidden_size, 8),
        ("prompt_encoder_config: mask_input_channels", prompt.mask_input_channels, 4),
    ):
        if whole % part:
            raise InputError(f"{what} {whole} is not a multiple of {part}")
    for act in (vision.hidden_act, prompt.hidden_act, decoder.hidden_act):
        if act not in ACTIVATIONS:
            raise InputError(
                f"hidden_act {act!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
            )
    widths = {
        "vision_config.output_channels": vision.output_channels,
        "twice vision_config.num_pos_feats": 2 * vision.num_pos_feats,
        "prompt_encoder_config.hidden_size": prompt.hidden_size,
        "mask_decoder_config.hidden_size": decoder.hidden_size,
    }
    if len(set(widths.values())) > 1:
        raise InputError(
            "these must be equal: " + ", ".join(f"{name} ({n})" for name, n in widths.items())
        )
    if (vision.image_size, vision.grid) != (prompt.image_size, prompt.grid):
        raise InputError("vision_config and prompt_encoder_config differ in image or patch size")
    if prompt.num_point_embeddings != 4:
        raise InputError("prompt_encoder_config.num_point_embeddings must be 4")
    if decoder.iou_head_depth < 2:
        raise InputError("mask_decoder_config.iou_head_depth must be at least 2")
