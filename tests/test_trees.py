"""Trees on disk: what Orbax's users read, and that nothing is written after an error."""

import resource
import sys
import threading

import ml_dtypes
import numpy as np
import pytest

from icp_jax.runs.trees import read_tree, save_tree


def test_any_orbax_user_reads_it(tmp_path):
    import orbax.checkpoint as ocp

    tree = {"a": np.arange(6.0).reshape(2, 3), "b": {"c": np.ones(4, ml_dtypes.bfloat16)}}
    save_tree(tmp_path / "t", tree)
    with ocp.StandardCheckpointer() as checkpointer:
        for found in (checkpointer.restore(tmp_path / "t"), read_tree(tmp_path / "t")):
            assert np.array_equal(found["a"], tree["a"]) and found["a"].dtype == np.float64
            assert found["b"]["c"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("limit", [6_000, 200_000, 1_000_000])
def test_writes_in_flight_are_waited_for(tmp_path, monkeypatch, limit):
    """After a write that failed no thread goes on, and none ends with nobody to report to."""
    tree = {f"a{k}": np.random.default_rng(k).normal(size=(640, 4 * k + 1)) for k in range(30)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    unheard, before = [], set(threading.enumerate())
    monkeypatch.setattr(sys, "unraisablehook", unheard.append)
    hook = sys.unraisablehook
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            save_tree(tmp_path / "t", tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writers = {t for t in set(threading.enumerate()) - before if "handler" in t.name}
    assert not writers and not unheard and sys.unraisablehook == hook
    assert not (tmp_path / "t").exists()
