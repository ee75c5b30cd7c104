"""SAM ViT-B, L and H, with the names of Hugging Face or of Meta's `.pth` files.

An export keeps the names of its source. Convolutions are folded into 2-D kernels. Hugging Face
checkpoints store the Fourier frequencies in one or both of two tensors; each has its own leaf.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converters.rules import Placed, Table
from converters.sam_layers import conv, linear, norm, plain, upscale
from converters.sam_names import HUGGING_FACE, META, Spelling

VISION = {
    "hidden_size": 768,
    "output_channels": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 1024,
    "patch_size": 16,
    "qkv_bias": True,
    "mlp_ratio": 4.0,
    "mlp_dim": None,
    "use_abs_pos": True,
    "use_rel_pos": True,
    "window_size": 14,
    "global_attn_indexes": (2, 5, 8, 11),
    "num_pos_feats": 128,
}
PROMPT = {"hidden_size": 256, "mask_input_channels": 16, "num_point_embeddings": 4}
DECODER = {
    "hidden_size": 256,
    "mlp_dim": 2048,
    "num_hidden_layers": 2,
    "attention_downsample_rate": 2,
    "num_multimask_outputs": 3,
    "iou_head_depth": 3,
    "iou_head_hidden_dim": 256,
}


def _part(config: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(config.get(key) or {})
    for name in ("image_size", "patch_size"):
        if isinstance(given.get(name), list | tuple):
            given[name] = given[name][0]  # the sides of a square
    return {**defaults, **given}


def _encoder(c: Mapping[str, Any], s: Spelling, at: str) -> Iterator[Placed]:
    d, channels, grid = c["hidden_size"], c["output_channels"], c["image_size"] // c["patch_size"]
    mlp = int(d * c["mlp_ratio"]) if c["mlp_dim"] is None else c["mlp_dim"]
    yield from conv(f"{at}{s.patch}", "embed/patch", d, c["num_channels"], c["patch_size"])
    if c["use_abs_pos"]:
        yield plain(f"{at}pos_embed", "embed/positions/embedding", 1, grid, grid, d)
    for i in range(c["num_hidden_layers"]):
        name, path = f"{at}{s.blocks}.{i}", f"blocks/{i}"
        side = 0 if i in c["global_attn_indexes"] else c["window_size"]
        yield from norm(f"{name}.{s.norm}1", f"{path}/layer_norm1", d)
        if c["use_rel_pos"]:
            table = (2 * (side or grid) - 1, d // c["num_attention_heads"])
            yield plain(f"{name}.attn.rel_pos_h", f"{path}/rel_pos_h/embedding", *table)
            yield plain(f"{name}.attn.rel_pos_w", f"{path}/rel_pos_w/embedding", *table)
        yield from linear(f"{name}.attn.qkv", f"{path}/qkv", 3 * d, d, c["qkv_bias"])
        yield from linear(f"{name}.attn.proj", f"{path}/proj", d, d)
        yield from norm(f"{name}.{s.norm}2", f"{path}/layer_norm2", d)
        yield from linear(f"{name}.mlp.lin1", f"{path}/lin1", mlp, d)
        yield from linear(f"{name}.mlp.lin2", f"{path}/lin2", d, mlp)
    yield from conv(f"{at}{s.neck[0]}", "head/conv1", channels, d, 1, bias=False)
    yield from norm(f"{at}{s.neck[1]}", "head/layer_norm1", channels)
    yield from conv(f"{at}{s.neck[2]}", "head/conv2", channels, channels, 3, bias=False)
    yield from norm(f"{at}{s.neck[3]}", "head/layer_norm2", channels)


def _prompt(c: Mapping[str, Any], s: Spelling, at: str) -> Iterator[Placed]:
    d, wide = c["hidden_size"], c["mask_input_channels"]
    narrow = wide // 4
    for k in range(c["num_point_embeddings"]):
        yield plain(f"{at}{s.points}.{k}.weight", f"prompt/point_{k}/embedding", 1, d)
    yield plain(f"{at}not_a_point_embed.weight", "prompt/not_a_point/embedding", 1, d)
    yield plain(f"{at}no_mask_embed.weight", "prompt/no_mask/embedding", 1, d)
    yield from conv(f"{at}{s.mask[0]}", "prompt/mask/conv1", narrow, 1, 2)
    yield from norm(f"{at}{s.mask[1]}", "prompt/mask/layer_norm1", narrow)
    yield from conv(f"{at}{s.mask[2]}", "prompt/mask/conv2", wide, narrow, 2)
    yield from norm(f"{at}{s.mask[3]}", "prompt/mask/layer_norm2", wide)
    yield from conv(f"{at}{s.mask[4]}", "prompt/mask/conv3", d, wide, 1)


def _attention(name: str, path: str, width: int, inner: int) -> Iterator[Placed]:
    for part in ("q_proj", "k_proj", "v_proj"):
        yield from linear(f"{name}.{part}", f"{path}/{part}", inner, width)
    yield from linear(f"{name}.out_proj", f"{path}/out_proj", width, inner)


def _decoder(c: Mapping[str, Any], s: Spelling, at: str) -> Iterator[Placed]:
    d, masks = c["hidden_size"], c["num_multimask_outputs"] + 1
    inner = d // c["attention_downsample_rate"]
    yield plain(f"{at}iou_token.weight", "decoder/iou_token/embedding", 1, d)
    yield plain(f"{at}mask_tokens.weight", "decoder/masks/embedding", masks, d)
    for k in range(c["num_hidden_layers"]):
        name, path = f"{at}transformer.layers.{k}", f"decoder/layers_{k}"
        yield from _attention(f"{name}.self_attn", f"{path}/self_attn", d, d)
        for part in ("cross_attn_token_to_image", "cross_attn_image_to_token"):
            yield from _attention(f"{name}.{part}", f"{path}/{part}", d, inner)
        for j in (1, 2, 3, 4):
            yield from norm(f"{name}.{s.norm}{j}", f"{path}/layer_norm{j}", d)
        yield from linear(f"{name}.mlp.lin1", f"{path}/lin1", c["mlp_dim"], d)
        yield from linear(f"{name}.mlp.lin2", f"{path}/lin2", d, c["mlp_dim"])
    final = "final_attn_token_to_image"
    yield from _attention(f"{at}transformer.{final}", f"decoder/{final}", d, inner)
    yield from norm(f"{at}transformer.{s.norm}_final_attn", "decoder/layer_norm_final_attn", d)
    yield from upscale(f"{at}{s.upscale[0]}", "decoder/upscale_conv1", d, d // 4)
    yield from norm(f"{at}{s.upscale[1]}", "decoder/upscale_layer_norm", d // 4)
    yield from upscale(f"{at}{s.upscale[2]}", "decoder/upscale_conv2", d // 4, d // 8)
    heads = [(f"output_hypernetworks_mlps.{k}", f"hyper_{k}", 3, d, d // 8) for k in range(masks)]
    depth, hidden = c["iou_head_depth"], c["iou_head_hidden_dim"]
    heads.append(("iou_prediction_head", "iou_head", depth, hidden, masks))
    for name, path, depth, hidden, out in heads:
        widths = (d, *[hidden] * (depth - 1), out)
        for j, part in enumerate(s.perceptron(depth)):
            yield from linear(
                f"{at}{name}.{part}", f"decoder/{path}/linear_{j}", widths[j + 1], widths[j]
            )


def _tensors(config: Mapping[str, Any], s: Spelling, prefix: str) -> Iterator[Placed]:
    vision = _part(config, "vision_config", VISION)
    yield from _encoder(vision, s, f"{prefix}{s.encoder}.")
    prompt = _part(config, "prompt_encoder_config", PROMPT)
    yield from _prompt(prompt, s, f"{prefix}prompt_encoder.")
    decoder = _part(config, "mask_decoder_config", DECODER)
    yield from _decoder(decoder, s, f"{prefix}mask_decoder.")
    for name, leaf in s.frequencies:
        yield plain(f"{prefix}{name}", f"positions/{leaf}/embedding", 2, vision["num_pos_feats"])
    for name in s.optional:
        yield plain(f"{prefix}{name}", f"pixels/{name}", vision["num_channels"], 1, 1)


@dataclass(frozen=True)
class SamTable(Table):
    """A table of `_tensors`, with the spelling and prefix found in the names.

    Without names: Hugging Face's, with one copy of the frequencies, as transformers writes it.
    """

    def _rules(
        self, config: Mapping[str, Any], prefix: Any, names: Sequence[str] | None
    ) -> dict[str, Placed]:
        spelling, before = prefix
        placed = {t.name: t for t in _tensors(config, spelling, before)}
        twice = [f"{before}{name}" for name, _ in spelling.frequencies]
        there = set(twice[:1] if names is None else names)
        left_out = {f"{before}{name}" for name in spelling.optional} - there
        if there.intersection(twice):
            left_out |= set(twice) - there
        return {name: tensor for name, tensor in placed.items() if name not in left_out}

    def _spellings(self) -> dict[str, Any]:
        return {
            f"{prefix}{s.encoder}.{s.patch}.weight": (s, prefix)
            for s in (HUGGING_FACE, META)
            for prefix in s.prefixes
        }


TABLE = SamTable(
    family="sam",
    rules=(),
    dims=lambda config: {},
    n_blocks=lambda config: _part(config, "vision_config", VISION)["num_hidden_layers"],
)
