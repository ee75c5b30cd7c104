"""Parts of inline SVG charts: elements, a frame with axes. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from icp_jax.report.numbers import short

WIDTH, HEIGHT = 440, 250  # user units; read on a phone at about 0.85 of them, on a screen at 1.2
LEFT, RIGHT, TOP, BOTTOM = 70, 12, 12, 40  # LEFT: a name, and five digits


def tag(name: str, content: Any = "", **attributes: Any) -> Markup:
    """An element; `class_` is `class`, and an underscore in a name is a hyphen."""
    said = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _number(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{}{}>{}</{}>").format(Markup(name), said, content, Markup(name))


def _number(value: Any) -> Any:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def join(parts: Sequence[Any]) -> Markup:
    """Parts in one piece."""
    return Markup("").join(parts)


def picture(parts: Sequence[Any], label: str, height: float = HEIGHT) -> Markup:
    """The whole chart. label: what it shows, in words, for those who do not see it."""
    content = join([tag("title", label), *parts])
    return tag("svg", content, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=label)


def text(x: float, y: float, said: Any, **more: Any) -> Markup:
    """A label. Without `class_`, in the muted colour of axes."""
    return tag("text", escape(said), x=float(x), y=float(y), **{"class_": "axis"} | more)


class Axis(NamedTuple):
    """Values to user units."""

    at: Callable[[float], float]
    ticks: list[float]


def axis(ticks: list[float], start: float, end: float, log: bool = False) -> Axis:
    """An axis over its ticks, from `start` to `end` in user units."""
    change = math.log10 if log else float
    low, high = change(ticks[0]), change(ticks[-1])
    span = (high - low) or 1.0
    return Axis(lambda v: start + (end - start) * (change(v) - low) / span, ticks)


def frame(
    y: Axis, y_name: str, x_name: str, format: Callable[[float], str] = short
) -> list[Markup]:
    """Grid lines with their values, and the names of both axes."""
    parts = []
    for tick in y.ticks:
        at = y.at(tick)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(text(LEFT - 6, at + 4, format(tick), text_anchor="end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f"rotate(-90 11 {middle:g})"
    parts.append(text(11, middle, y_name, text_anchor="middle", transform=turned))
    below = (LEFT + WIDTH - RIGHT) / 2
    parts.append(text(below, HEIGHT - 4, x_name, text_anchor="middle"))
    return parts


def block_names(at: Callable[[int], float], blocks: Sequence[int]) -> list[Markup]:
    """Block numbers under an axis: all, or as many as there is room for."""
    every = max(1, -(-len(blocks) * 26 // (WIDTH - LEFT - RIGHT)))
    return [
        text(at(k), HEIGHT - BOTTOM + 15, name, text_anchor="middle")
        for k, name in enumerate(blocks)
        if k % every == 0
    ]
