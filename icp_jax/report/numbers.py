"""Numbers as a reader wants them: short text, and round ticks for axes."""

from __future__ import annotations

import math
from collections.abc import Iterable

Number = float | int | None


def short(value: Number, digits: int = 3) -> str:
    """A number in at most `digits` figures; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
        text = f"{value:.{places}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"


def percent(value: Number, places: int = 1) -> str:
    """A fraction as a percentage."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{places}f}%"


def seconds(value: Number) -> str:
    """A duration: `8.3 s`, `2 min 5 s`, `3 h 12 min`."""
    if value is None or not math.isfinite(value):
        return "–"
    if value < 100:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def mebibytes(value: Number) -> str:
    """A number of MiB, in GiB from 10 GiB on."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value / 1024:.1f} GiB" if value >= 10240 else f"{value:.0f} MiB"


def finite(values: Iterable[Number]) -> list[float]:
    """The finite ones."""
    return [v for v in values if v is not None and math.isfinite(v)]


def linear_ticks(high: float, low: float = 0.0, count: int = 5) -> list[float]:
    """Round ticks that cover [low, high]: steps of 1, 2 or 5 times a power of ten."""
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / count))
    step = next(power * k for k in (1, 2, 5, 10) if power * k * count >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that cover [low, high]; within two decades also twice and five times them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    if last - first > 8:
        return [10.0**p for p in range(first, last + 1, -(-(last - first) // 6))] + [10.0**last]
    ticks = [s * 10.0**p for p in range(first, last + 1) for s in steps]
    below = max((t for t in ticks if t <= low * (1 + 1e-9)), default=ticks[0])
    above = min((t for t in ticks if t >= high * (1 - 1e-9)), default=ticks[-1])
    if below == above:
        above = ticks[min(ticks.index(above) + 1, len(ticks) - 1)]
    return [t for t in ticks if below <= t <= above]
