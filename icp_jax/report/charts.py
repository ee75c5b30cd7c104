"""Charts over blocks as inline SVG: lines, pairs of dots, stacked bars; and bars by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from icp_jax.report import svg
from icp_jax.report.numbers import Number, finite, linear_ticks, log_ticks, short
from icp_jax.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, tag, text

Series = Mapping[str, Sequence[Number]]
INK = 7  # lines and bars have this many colours
DASHES = ("", "5 3", "1.5 3")


def lines(
    curves: Mapping[str, Series],
    blocks: Sequence[int],
    label: str,
    y_name: str,
    log: bool = True,
    after: str = "block",
) -> Markup:
    """Curves over blocks. curves: name of a colour -> name of a dash -> a value per block.

    after: what is on the axis in place of blocks.
    """
    values = finite(v for dashes in curves.values() for row in dashes.values() for v in row)
    if log:
        values = [v for v in values if v > 0]
    if not values:
        return Markup("")
    ticks = log_ticks(min(values), max(values)) if log else linear_ticks(max(values))
    y = svg.axis(ticks, HEIGHT - BOTTOM, TOP, log)
    step = (WIDTH - LEFT - RIGHT - 20) / max(len(blocks) - 1, 1)

    def x(k: int) -> float:
        return LEFT + 10 + (k * step if len(blocks) > 1 else (WIDTH - LEFT - RIGHT - 20) / 2)

    parts = [*svg.frame(y, y_name, f"after {after}"), *svg.block_names(x, blocks)]
    for c, (name, dashes) in enumerate(curves.items()):
        for d, (dash, row) in enumerate(dashes.items()):
            shown = [(x(k), y.at(v), v, blocks[k]) for k, v in enumerate(row)
                     if v is not None and v == v and (v > 0 or not log)]  # fmt: skip
            ink = f"ink{(c if len(curves) > 1 else d) % INK}"
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b, *_ in shown)
            dashed = DASHES[d % 3] or None
            parts.append(
                tag("polyline", points=points, class_=f"line {ink}", stroke_dasharray=dashed)
            )
            for a, b, value, block in shown:
                what = dash if len(curves) == 1 else f"{name}, {dash}"
                said = tag("title", f"{what} after {after} {block}: {short(value)}")
                parts.append(tag("circle", said, cx=a, cy=b, r=3, class_=f"dot {ink}"))
    return svg.picture(parts, label)


def pairs(
    before: Sequence[Number], after: Sequence[Number], blocks: Sequence[int], label: str, y: str
) -> Markup:
    """A hollow and a solid dot per block, joined by a line, on a logarithmic axis."""
    values = [v for v in finite([*before, *after]) if v > 0]
    if not values:
        return Markup("")
    scale = svg.axis(log_ticks(min(values), max(values)), HEIGHT - BOTTOM, TOP, log=True)
    step = (WIDTH - LEFT - RIGHT) / len(blocks)

    def x(k: int) -> float:
        return LEFT + (k + 0.5) * step

    parts = [*svg.frame(scale, y, "block"), *svg.block_names(x, blocks)]
    for k, (old, new, block) in enumerate(zip(before, after, blocks, strict=True)):
        if old is None or new is None or min(old, new) <= 0:
            continue
        a, b = scale.at(old), scale.at(new)
        said = tag("title", f"block {block}: {short(old)} before, {short(new)} after")
        dots = [tag("line", x1=x(k), x2=x(k), y1=a, y2=b, class_="stem")]
        dots.append(tag("circle", cx=x(k), cy=a, r=4.5, class_="hollow"))
        dots.append(tag("circle", cx=x(k), cy=b, r=4.5, class_="dot ink0"))
        parts.append(tag("g", svg.join([said, *dots])))
    return svg.picture(parts, label)


def stacked(parts_of: Series, blocks: Sequence[int], label: str, y_name: str) -> Markup:
    """A bar per block, made of parts. parts_of: part -> a value per block."""
    totals = [sum(finite(column)) for column in zip(*parts_of.values(), strict=True)]
    y = svg.axis(linear_ticks(max(totals, default=1.0) or 1.0), HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / max(len(blocks), 1)
    wide = min(step * 0.72, 46.0)

    def x(k: int) -> float:
        return LEFT + (k + 0.5) * step

    drawn = [*svg.frame(y, y_name, "block"), *svg.block_names(x, blocks)]
    for k, block in enumerate(blocks):
        below = 0.0
        for c, (part, row) in enumerate(parts_of.items()):
            value = row[k] or 0.0
            if value <= 0:
                continue
            top, bottom = y.at(below + value), y.at(below)
            said = tag("title", f"block {block}, {part}: {short(value)}")
            place = {"x": x(k) - wide / 2, "y": top, "width": wide, "height": bottom - top}
            drawn.append(tag("rect", said, class_=f"bar ink{c % INK}", **place))
            below += value
    return svg.picture(drawn, label)


def bars(rows: Mapping[str, Number], label: str, format=short, mark: Number = None) -> Markup:
    """Horizontal bars with their values. mark: a line across, such as the measured peak."""
    shown = {name: value for name, value in rows.items() if value is not None}
    most = max([*shown.values(), mark or 0.0]) or 1.0
    left, down = 8.0 * max(map(len, shown)) + 14, 26
    span = WIDTH - left - 78
    parts = []
    for r, (name, value) in enumerate(shown.items()):
        y = TOP + r * down
        parts.append(text(left - 8, y + 15, name, text_anchor="end"))
        wide = max(span * value / most, 1.0)
        said = tag("title", f"{name}: {format(value)}")
        place = {"x": float(left), "y": y + 2, "width": wide, "height": down - 8}
        parts.append(tag("rect", said, class_="bar ink0", **place))
        parts.append(text(WIDTH - 4, y + 15, format(value), class_="value", text_anchor="end"))
    bottom = TOP + len(shown) * down
    if mark is not None:
        at = left + span * mark / most
        parts.append(tag("line", x1=at, x2=at, y1=TOP - 6, y2=bottom, class_="mark"))
    return svg.picture(parts, label, bottom + 8)
