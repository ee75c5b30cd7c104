"""The error-growth figure: a colour per method, and a line per statistic of the tokens."""

from icp_jax.report.figures import LINES, error_growth


def words(path):
    return [line.strip()[5:-4] for line in path.read_text().splitlines() if "<!-- " in line]


def test_one_line_per_method_or_one_per_statistic_too(tmp_path):
    plain, full = tmp_path / "plain.svg", tmp_path / "full.svg"
    errors = {"wanda": [0.1, 0.2], "icp": [0.1, 0.15]}
    error_growth(errors, plain, "growth")
    error_growth({k: dict.fromkeys(LINES, v) for k, v in errors.items()}, full, "growth")
    assert words(plain)[-2:] == ["wanda", "icp"]
    assert words(full)[-5:] == ["wanda", "icp", "mean", "median", "95th percentile"]
