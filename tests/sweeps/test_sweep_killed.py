"""Sweeps in processes that are killed, and two at once: every point is there, and there once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_sweep

from icp_jax.sweeps.study import STARTUP

POINTS = "grid({'prune.method': ['wanda', 'magnitude'], 'prune.sparsity': [0.3, 0.4, 0.5]})"
SPACE = "space={'prune.sparsity': uniform(0.3, 0.6)}, trials=5, sampler='random'"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Processes that compile once between them."""
    folder = tmp_path_factory.mktemp("compiled")
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder)}


def start(path, out, environment, *more):
    command = [sys.executable, "-m", "icp_jax.cli", "sweep", path, "--out", str(out)]
    command += ["--engine", "streamed", *more]
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def kill(process, out, lines):
    """kill -9 as soon as so many points are recorded."""
    while process.poll() is None and len(read(out)) < lines:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    return read(out)


def read(out):
    path = out / "points.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("fields, count", [(POINTS, 6), (SPACE, 5)])
def test_nothing_is_lost_by_a_kill(opt_folder, tmp_path, environment, fields, count):
    path, out = small_sweep.write(opt_folder, tmp_path, fields), tmp_path / "out"
    before = kill(start(path, out, environment), out, 1)
    assert 1 <= len(before) < count
    more = kill(start(path, out, environment, "--resume"), out, len(before) + 2)
    assert len(before) < len(more) < count and more[: len(before)] == before
    process = start(path, out, environment, "--resume")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    whole = read(out)
    assert whole[: len(more)] == more
    rows = [json.loads(line) for line in whole]
    assert len({row["key"] for row in rows}) == len(rows) == count
    states = [row["state"] for row in rows]
    # the last point of the search may be above the median of the others
    assert states[:STARTUP] == ["done"] * STARTUP and set(states) <= {"done", "stopped"}
    assert fields == SPACE or "stopped" not in states
    assert not [*out.glob("worker-*"), *out.glob(".*")]


def both(model, place, points, environment):
    """(two processes on one sweep, the second started once the first has begun; their folder)."""
    path, out = small_sweep.write(model, place, points), place / "out"
    first = start(path, out, environment)
    while not (out / "sweep.json").exists():
        time.sleep(0.02)
    return (first, start(path, out, environment, "--resume", "--quiet")), out


@pytest.mark.slow
def test_two_processes_work_on_one_search(opt_folder, tmp_path, environment):
    processes, out = both(opt_folder, tmp_path, SPACE, environment)
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    rows = [json.loads(line) for line in read(out)]
    assert sorted(row["trial"] for row in rows) == list(range(5))


@pytest.mark.slow
def test_a_list_is_for_one_process(opt_folder, tmp_path, environment):
    (first, second), out = both(opt_folder, tmp_path, POINTS, environment)
    _, err = second.communicate(timeout=300)
    assert second.returncode == 2 and "another process is running the sweep" in err
    first.communicate(timeout=300)
    assert first.returncode == 0 and len(read(out)) == 6


DEVICES = """
import sys
sys.path.insert(0, {tests!r})
import jax, small_sweep, icp_jax
from pathlib import Path
folder = Path({folder!r})
points = [{{"prune.sparsity": s}} for s in (0.4, 0.5, 0.6)]
made = small_sweep.sweep({model!r}, folder, points)
assert jax.device_count() == 2
several = icp_jax.sweep(made, folder / "several", engine="compiled").rows
jax.local_devices = lambda: jax.devices()[:1]
single = icp_jax.sweep(made, folder / "single", engine="compiled").rows
for a, b in zip(several, single, strict=True):
    assert a["key"] == b["key"] and abs(a["perplexity"] / b["perplexity"] - 1) < 1e-4, (a, b)
"""


@pytest.mark.slow
def test_devices_share_the_points(opt_folder, tmp_path):
    tests = str(Path(__file__).parent)
    code = DEVICES.format(tests=tests, folder=str(tmp_path), model=str(opt_folder))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
