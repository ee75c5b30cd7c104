"""A heat map as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from icp_jax.report import svg
from icp_jax.report.numbers import Number, finite, percent
from icp_jax.report.svg import LEFT, TOP, WIDTH, tag, text

ROOM = 38  # user units that a value needs


def draw(
    rows: Mapping[str, Sequence[Number]],
    columns: Sequence[object],
    label: str,
    format: Callable[[Number], str] = percent,
    names: tuple[str, str] = ("layer", "block"),
) -> Markup:
    """A cell per row and column. rows: row name -> a value per column; None is left empty."""
    values = finite(v for row in rows.values() for v in row)
    low, high = min(values, default=0.0), max(values, default=1.0)
    level = format(low) == format(high)  # what reads the same looks the same
    left = min(max(8.0 * max(map(len, rows), default=0) + 12, LEFT), 150)
    across = (WIDTH - left - 4) / max(len(columns), 1)
    down = min(34.0, max(16.0, 190 / max(len(rows), 1)))
    parts = []
    for r, (name, row) in enumerate(rows.items()):
        y = TOP + r * down
        parts.append(text(left - 8, y + down / 2 + 4, name, text_anchor="end"))
        for c, value in enumerate(row):
            if value is None:
                continue
            share = 0.5 if level else (value - low) / (high - low)
            said = f"{names[0]} {name}, {names[1]} {columns[c]}: {format(value)}"
            place = {"x": left + c * across, "y": y, "width": across - 1, "height": down - 1}
            fill = f"--share:{100 * share:.0f}%"
            parts.append(tag("rect", tag("title", said), class_="heat", style=fill, **place))
            if across >= ROOM:
                over = "value strong" if share > 0.55 else "value"
                middle = left + (c + 0.5) * across
                parts.append(
                    text(middle, y + down / 2 + 4, format(value), class_=over, text_anchor="middle")
                )
    bottom = TOP + len(rows) * down
    every = max(1, -(-max(len(str(c)) for c in columns) * 9 // int(max(across, 1))))
    for c, column in enumerate(columns):
        if c % every == 0:
            parts.append(text(left + (c + 0.5) * across, bottom + 15, column, text_anchor="middle"))
    parts.append(text((left + WIDTH) / 2, bottom + 34, names[1], text_anchor="middle"))
    return svg.picture(parts, label, bottom + 42)
