"""The charts of a sweep as inline SVG: a scatter with its Pareto front, parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from icp_jax.report import svg
from icp_jax.report.numbers import finite, linear_ticks, log_ticks, short
from icp_jax.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, tag, text

Point = tuple[float, float, str]  # x, y, what it is


def front(points: Sequence[Point]) -> list[Point]:
    """The points with no other of at least their x and at most their y: large x, small y."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (-p[0], p[1])):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept[::-1]


def scatter(points: Sequence[Point], label: str, x_name: str, y_name: str) -> Markup:
    """Dots, with a step line through those of the front."""
    ys, xs = [p[1] for p in points], [p[0] for p in points]
    log = min(ys) > 0 and max(ys) > 8 * min(ys)
    ticks = log_ticks(min(ys), max(ys)) if log else linear_ticks(max(ys), min(ys))
    y = svg.axis(ticks, HEIGHT - BOTTOM, TOP, log)
    x = svg.axis(linear_ticks(max(xs), min(xs)), LEFT + 8, WIDTH - RIGHT - 8)
    best = front(points)
    parts = svg.frame(y, y_name, x_name)
    for tick in x.ticks:
        parts.append(text(x.at(tick), HEIGHT - BOTTOM + 15, short(tick), text_anchor="middle"))
    line = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b, _ in best)
    parts.append(tag("polyline", points=line, class_="line ink1"))
    for point in sorted(points, key=lambda p: p in best):
        a, b, what = point
        kind = "dot ink1" if point in best else "dot ink0 faint"
        said = tag("title", f"{what}: {x_name} {short(a)}, {y_name} {short(b)}")
        parts.append(tag("circle", said, cx=x.at(a), cy=y.at(b), r=4, class_=kind))
    return svg.picture(parts, label)


def parallel(rows: Sequence[Mapping[str, object]], last: str, label: str) -> Markup:
    """A line per row over one axis per column; the better in the last column, the stronger."""
    names = list(rows[0])
    step = (WIDTH - 90) / max(len(names) - 1, 1)
    parts, places = [], []
    for k, name in enumerate(names):
        at, marks = _column([row.get(name) for row in rows])
        places.append(at)
        x = 45 + k * step
        parts.append(tag("line", x1=x, x2=x, y1=TOP + 8, y2=HEIGHT - BOTTOM, class_="spine"))
        shown = name.rpartition(".")[2]
        parts.append(text(x, HEIGHT - BOTTOM + 18, shown, text_anchor="middle"))
        for y, what in marks:
            parts.append(text(x + 5, y + 4, what, class_="axis halo"))
    results = [row.get(last) for row in rows]
    known = finite(v for v in results if isinstance(v, int | float))
    low, high = min(known, default=0.0), max(known, default=1.0)
    drawn = []
    for row, result in zip(rows, results, strict=True):
        if not isinstance(result, int | float):
            continue
        share = 0.0 if high == low else (result - low) / (high - low)
        line = " ".join(
            f"{45 + k * step:.1f},{at[str(row.get(name))]:.1f}"
            for k, (name, at) in enumerate(zip(names, places, strict=True))
        )
        said = ", ".join(f"{name} {_said(row.get(name))}" for name in names)
        ink = "line best ink1" if result == low else "line ink0"
        style = f"opacity:{1 - 0.8 * share:.2f}"
        one = tag("polyline", tag("title", said), points=line, class_=ink, style=style)
        drawn.append((share, one))
    ordered = [one for _, one in sorted(drawn, key=lambda pair: -pair[0])]
    return svg.picture([*ordered, *parts], label)


def _column(values: Sequence[object]) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """(place of each value, labels at their places) on one axis, larger values higher."""
    bottom, top = HEIGHT - BOTTOM, TOP + 8
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    distinct = sorted(set(map(str, values)))
    if len(numbers) == len(values):
        low, high = min(numbers), max(numbers)
        change = math.log if low > 0 and high > 30 * low else float
        span = change(high) - change(low) or 1.0
        at = {str(v): bottom - (bottom - top) * (change(v) - change(low)) / span for v in numbers}
        return at, [(at[str(v)], short(v)) for v in dict.fromkeys((low, high))]
    step = (bottom - top) / max(len(distinct) - 1, 1)
    at = {v: bottom - k * step for k, v in enumerate(distinct)}
    return at, [(y, v) for v, y in at.items()]


def _said(value: object) -> str:
    return short(value) if isinstance(value, int | float) else str(value)
