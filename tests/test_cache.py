"""The compile cache: entries that a full disk cut short are noticed and replaced."""

import os
import subprocess
import sys
import zlib

import pytest
from conftest import write_opt

from icp_jax.backend import compile_cache

SETUP = "from icp_jax.backend import compile_cache; compile_cache.use(); import jax"
RUN = f"{SETUP}; jax.jit(lambda x: x * 3 + 1)(2.0)"


@pytest.mark.parametrize("own", [True, False])
def test_what_was_cut_short_is_written_anew(tmp_path, own):
    name = "JAX_COMPILATION_CACHE_DIR" if own else "XDG_CACHE_HOME"
    others = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}

    def entries():
        command = [sys.executable, "-W", "error", "-c", RUN]
        environment = {**others, name: str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return {path: path.stat().st_size for path in tmp_path.rglob("*-cache")}

    first = entries()
    assert first
    for k, (path, size) in enumerate(first.items()):
        os.truncate(path, 0 if k == 0 else size // 2)
    again = entries()
    assert set(again) == set(first) and all(zlib.decompress(p.read_bytes()) for p in again)


def test_an_entry_is_looked_through_once(tmp_path, monkeypatch):
    good, torn = tmp_path / "a-cache", tmp_path / "b-cache"
    good.write_bytes(zlib.compress(b"program"))
    torn.write_bytes(zlib.compress(bytes(range(256)))[:50])
    (tmp_path / "notes").write_bytes(b"")
    os.utime(good, (1, 1))
    compile_cache.repair(tmp_path)
    assert good.exists() and not torn.exists() and (tmp_path / "notes").exists()
    monkeypatch.setattr(compile_cache, "_whole", lambda entry: False)
    compile_cache.repair(tmp_path)
    assert good.exists()


@pytest.mark.slow
def test_a_second_model_of_the_same_shape_compiles_nothing(tmp_path, bundled):
    (tmp_path / "text.txt").write_text((bundled / "calibration.txt").read_text()[:6000])
    others = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    found = []
    for seed in range(2):
        model = write_opt(tmp_path / f"model{seed}", seed=seed)
        command = [sys.executable, "-m", "icp_jax.cli", "prune", str(model), f"{model}-out"]
        command += ["--data", str(tmp_path / "text.txt"), "--samples", "6", "--quiet"]
        environment = {**others, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        subprocess.run([*command, "--device-memory", "4GB"], env=environment, check=True)
        found.append({path.name for path in tmp_path.rglob("*-cache")})
    assert found[0] and found[1] == found[0]
