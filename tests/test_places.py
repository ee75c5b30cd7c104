"""Streams on the device, in pinned memory, on the host, on disk: the same samples and runs."""

import errno
import os

import jax
import numpy as np
import pytest
from conftest import pin_streams

from icp_jax import api
from icp_jax.config import CompensateConfig, MemoryConfig
from icp_jax.streaming import passes, storage


@pytest.mark.parametrize("kind", ["device", "pinned_host"])
def test_samples_give_back_what_they_took(kind):
    stream = storage.Samples((7, 3, 2), np.float32, kind)
    values = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float32)
    stream[slice(0, 4)] = jax.numpy.asarray(values[:4])
    stream[slice(4, 7)] = jax.numpy.pad(values[4:], ((0, 1), (0, 0), (0, 0)))  # a padded batch
    np.testing.assert_array_equal(stream[slice(2, 6)], values[2:6])
    order = np.array([6, 0, 3])
    np.testing.assert_array_equal(stream[order], values[order])
    assert stream[order].sharding.memory_kind == "device"
    assert len(stream) == 7 and {p.sharding.memory_kind for p in stream._parts} == {kind}


def test_a_kernel_travels_as_it_lies(monkeypatch):
    """To an accelerator, which turns it; the tree is the same."""
    stored = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    params = {"kernel": stored.T, "bias": stored[0], "scale": np.float16(2)}
    here = passes.to_device(params)
    sent = []
    real = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda tree, *to: real(sent.append(tree) or tree, *to))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = passes.to_device(params)
    assert [leaf.shape for leaf in sent[0]] == [(3,), (5, 3), ()]
    for name in params:
        assert there[name].dtype == "float32"
        np.testing.assert_array_equal(here[name], there[name])
        np.testing.assert_array_equal(here[name], params[name])


def test_a_stream_on_disk_leaves_no_file(tmp_path):
    stream = storage.empty((4, 8), "bfloat16", "disk", tmp_path)
    stream[:] = 1.5
    assert stream.dtype.name == "bfloat16" and np.all(stream == 1.5)
    assert list(tmp_path.iterdir()) == []


def test_a_stream_on_disk_gives_its_pages_back(tmp_path):
    stream = storage.empty((8, 1 << 18), "float32", "disk", tmp_path)  # 8 MiB
    stream[:] = 1.5
    before = storage.proc("self/status", "RssFile")
    storage.forget(stream)
    assert before - storage.proc("self/status", "RssFile") > 7 << 20
    assert np.all(stream == 1.5)


def test_a_full_disk_is_met_before_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        storage.empty((4, 8), "float32", "disk", tmp_path)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_first_place_with_room(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    device = "host" if backend == "cpu" else "device"
    assert storage.choose("auto", 10, 10, 10) == device
    assert storage.choose("auto", 10, 9, 10) == "host"
    assert storage.choose("auto", 10, 9, 9) == "disk"
    assert storage.choose("device", 10, 0, 0) == device
    assert storage.choose("host", 10, 0, 0) == "host"
    assert storage.choose("disk", 10, 99, 99) == "disk"


@pytest.fixture(scope="module")
def pruned(opt_folder):
    model = api.load(opt_folder, np.float32)
    tokens = np.random.default_rng(1).integers(3, 2048, (5, 16)).astype(np.int32)

    def run(monkeypatch, place, dtype="float32"):
        if place == "samples":
            pin_streams(monkeypatch)
            place = "host"
        memory = MemoryConfig(place, dtype, batch_tokens=32)
        found, reports = api.prune(
            model, tokens, compensation=CompensateConfig(2), memory=memory, sparsity=0.6
        )
        return jax.tree.leaves(found.params), reports

    with pytest.MonkeyPatch.context() as patch:
        return run, run(patch, "host")


@pytest.mark.parametrize("place", ["disk", "samples"])
def test_the_place_changes_no_bit(pruned, monkeypatch, place):
    run, (expected, _) = pruned
    for new, old in zip(run(monkeypatch, place)[0], expected, strict=True):
        np.testing.assert_array_equal(new, old)


def test_bfloat16_streams_cost_little(pruned, monkeypatch):
    run, (_, expected) = pruned
    found = run(monkeypatch, "host", "bfloat16")[1]
    errors = np.array([[a.error, b.error] for a, b in zip(found, expected, strict=True)])
    assert not np.array_equal(errors[:, 0], errors[:, 1])
    np.testing.assert_allclose(errors[:, 0], errors[:, 1], rtol=0.05)


VERSIONS = {
    "2": ("memory.max", "memory.current", "inactive_file"),
    "1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_cgroup_leaves_free(tmp_path, version):
    limit, used, cached = VERSIONS[version]
    assert storage.cgroup_free(tmp_path) is None
    (tmp_path / limit).write_text("max\n")
    assert storage.cgroup_free(tmp_path) is None
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / used).write_text("900\n")
    (tmp_path / "memory.stat").write_text(f"anon 300\n{cached} 500\nactive_file 100\n")
    assert storage.cgroup_free(tmp_path) == 600


def test_the_cgroups_of_a_process(tmp_path):
    own = tmp_path / "cgroup"
    assert list(storage.cgroups(own, tmp_path)) == []  # a system without any
    own.write_text("4:cpu,memory:/a/b\n1:cpuset:/c\n0::/d:e\n")
    found = [str(path.relative_to(tmp_path)) for path in storage.cgroups(own, tmp_path)]
    assert found == ["memory/a/b", "memory/a", "memory", "d:e", "."]
    assert 0 < storage.host_free() <= storage.proc("meminfo", "MemTotal")


def test_rounding_is_to_what_the_file_holds():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(40, 30)) * 10.0 ** rng.uniform(-9, 4, (40, 30))  # subnormals as well
    leaves = [jax.numpy.asarray(wide, np.float32) for _ in range(3)]
    given, dtypes = list(leaves), [np.dtype(np.float16), np.dtype(np.float32), np.dtype("bfloat16")]
    found = passes.rounded(given, dtypes)
    assert given == [] and found[1] is leaves[1]
    for new, old, dtype in zip(found, leaves, dtypes, strict=True):
        np.testing.assert_array_equal(new, np.asarray(old).astype(dtype).astype(np.float32))
    # no program has both conversions, which XLA may drop together
    narrow = passes._narrowed(leaves, tuple(dtypes))
    programs = passes._narrowed.lower(leaves, tuple(dtypes)), passes._widened.lower(narrow)
    assert [program.as_text().count("stablehlo.convert") for program in programs] == [2, 2]
