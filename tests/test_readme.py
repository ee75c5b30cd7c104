"""Every Python example of the README runs as it is written."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(5))
def test_example(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # the user's own code is not strict
        names: dict = {}
        exec(compile(EXAMPLES[number], f"README example {number}", "exec"), names)
    if number == 0:
        assert (tmp_path / "opt-pydoc-50" / "config.json").is_file()
        assert "perplexity=" in capsys.readouterr().out
    elif number == 1:
        errors = names["sweep"](names["points"]).error
        assert errors.shape == (3, 6) and np.all(np.diff(errors[:, -1]) > 0)
    elif number == 2:
        assert int((~names["keep"]).sum()) == 1024
    elif number == 3:
        assert names["report"].epochs[-1] < names["report"].epochs[0]
        assert np.all(np.asarray(names["tuned"]["kernel"])[~np.asarray(names["keep"])] == 0)
    else:
        kernel = np.asarray(names["params"]["kernel"])
        assert kernel[0, 0] == kernel[1, 1] == 0 and kernel[0, 1] != 1


def test_there_are_five_examples():
    assert len(EXAMPLES) == 5
