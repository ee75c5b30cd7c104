"""`icp-jax segment`: segment one object and write the image with its mask."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from icp_jax.data.hub import resolve
from icp_jax.errors import InputError
from icp_jax.streaming.passes import compute_dtype
from icp_jax.streaming.source import FolderSource
from icp_jax.vision.images import load_image
from icp_jax.vision.predictor import SamPredictor

COLOUR, STRENGTH = np.array([30, 144, 255], np.float32), 0.5
PROMPT = (255, 64, 64)


def numbers(name: str, text: str, count: int) -> list[float]:
    """Parse `"x,y"` into `count` numbers. name: the option, for messages. Raises InputError."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count:
        form = "x,y" if count == 2 else "x0,y0,x1,y1"
        raise InputError(f"--{name} takes {form}, got {text!r}")
    return found


def overlay(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Paint the mask over the image in colour."""
    painted = image * (1 - STRENGTH) + COLOUR * STRENGTH
    return np.where(mask[..., None], painted, image).astype(np.uint8)


def segment(
    model: str | Path,
    image: str | Path,
    out: str | Path,
    point: str | None = None,
    box: str | None = None,
    dtype: str = "auto",
) -> dict[str, Any]:
    """Segment one object, and write the image with its mask to `out`.

    point: "x,y"; box: "x0,y0,x1,y1", in pixels of the upright image. Takes the mask with the
    highest predicted IoU of three. Returns the output path, the mask's pixels and its predicted
    IoU. Raises InputError before anything is written.
    """
    from PIL import Image, ImageDraw

    if point is None and box is None:
        raise InputError("no prompt given: give --point x,y or --box x0,y0,x1,y1")
    given: dict[str, Any] = {}
    if point is not None:
        given["points"] = [numbers("point", point, 2)]
    if box is not None:
        given["boxes"] = numbers("box", box, 4)
    out = Path(out).expanduser()
    if out.exists():
        raise InputError(f"{out} exists already: choose another --out")
    if out.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"--out {out}: unknown image suffix {out.suffix!r}; use .png or .jpg")
    if not out.absolute().parent.is_dir():
        raise InputError(f"the output's folder {out.absolute().parent} does not exist: create it")
    pixels = load_image(image)
    with contextlib.closing(FolderSource(resolve(str(model)))) as source:
        predictor = SamPredictor(source, dtype=compute_dtype(dtype))
        predictor.set_image(pixels)
        found = predictor.predict(**given, best=True)
    painted = Image.fromarray(overlay(pixels, found.masks[0]))
    draw, size = ImageDraw.Draw(painted), max(2, max(painted.size) // 150)
    for x, y in given.get("points", []):
        draw.ellipse((x - size, y - size, x + size, y + size), fill=PROMPT)
    if box is not None:
        draw.rectangle(given["boxes"], outline=PROMPT, width=max(1, size // 2))
    painted.save(out)
    return {
        "out": str(out),
        "area": int(found.masks[0].sum()),
        "predicted_iou": float(found.iou[0]),
    }
