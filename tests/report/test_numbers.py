"""Numbers for readers."""

import math

import pytest

from icp_jax.report.numbers import linear_ticks, log_ticks, mebibytes, seconds, short


@pytest.mark.parametrize("value, said", [
    (None, "–"), (math.nan, "–"), (math.inf, "–"), (0, "0"), (0.05116, "0.0512"), (1234.5, "1234"),
    (1e-6, "1e-6"), (123456, "1.23e5"), (-0.5, "-0.5"), (20, "20"), (1e-4, "1e-4"),
])  # fmt: skip
def test_short(value, said):
    assert short(value) == said


def test_units():
    assert [seconds(s) for s in (8.26, 125, 11520)] == ["8.3 s", "2 min 5 s", "3 h 12 min"]
    assert [mebibytes(m) for m in (512.4, 20480)] == ["512 MiB", "20.0 GiB"]


@pytest.mark.parametrize("low, high", [(1e-5, 0.3), (0.1, 0.11), (2, 2), (1e-30, 1e9), (3, 900)])
def test_ticks_cover_the_values(low, high):
    for ticks in (log_ticks(low, high), linear_ticks(high, low)):
        assert ticks[0] <= low * (1 + 1e-9) and ticks[-1] >= high * (1 - 1e-9)
        assert 2 <= len(ticks) <= 11 and ticks == sorted(set(ticks))
