"""The dense stream kept for later runs: the same bits, noticed damage, and too little room."""

import os
from collections import namedtuple

import jax
import numpy as np
import pytest

import icp_jax
from icp_jax.core.hyper import Recipe, hyper
from icp_jax.model import TreeSink
from icp_jax.streaming import storage
from icp_jax.streaming.job import Hooks, Job
from icp_jax.streaming.loop import prune_blocks
from icp_jax.streaming.targets import Targets

Disk = namedtuple("Disk", "f_bavail f_frsize")


@pytest.fixture(scope="module")
def model(opt_folder):
    return icp_jax.load(opt_folder)


def run(model, targets, place="host", dtype="float32"):
    """(pruned params, errors, blocks that the dense stream was computed for)."""
    shapes = [model.shapes(t) for t in range(model.family.n_blocks)]
    recipe = Recipe(stream_dtype=dtype)
    job = Job(hyper(model.family, shapes, recipe=recipe, sparsity=0.5), recipe, 0, place)
    tokens = np.random.default_rng(1).integers(3, 97, (5, 24)).astype(np.int32)
    sink, dense = TreeSink(model.params), []

    def tick(block, phase, done, total, loss):
        if phase == "dense" and block not in dense:
            dense.append(block)

    reports = prune_blocks(model, sink, tokens, job, Hooks(tick, targets=targets))
    return sink.params, [r.error for r in reports], dense


def same(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("place, dtype", [("host", "float32"), ("disk", "bfloat16")])
def test_later_runs_take_it_and_give_the_same_bits(model, tmp_path, place, dtype, monkeypatch):
    monkeypatch.setattr("icp_jax.streaming.targets.CHUNK", 10_000)  # several parts
    blocks = list(range(model.family.n_blocks))
    alone = run(model, None, place, dtype)
    targets = Targets(tmp_path, len(blocks))
    first, second = (run(model, targets, place, dtype) for _ in range(2))
    assert [alone[2], first[2], second[2]] == [blocks, blocks, []]
    for found in (first, second):
        assert same(found[0], alone[0]) and found[1] == alone[1]
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_damage_is_noticed(model, tmp_path, caplog):
    targets = Targets(tmp_path, model.family.n_blocks)
    alone = run(model, targets)
    size = 5 * 24 * model.family.hidden_size * 4
    os.pwrite(targets._file.fileno(), b"\x7f", size + 100)  # in block 1
    again = run(model, targets)
    assert again[2] == [1] and same(again[0], alone[0])
    assert "block 1 on disk is damaged: it is computed again" in caplog.text
    assert run(model, targets)[2] == []


def test_without_room_nothing_is_kept(model, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(os, "fstatvfs", lambda file: Disk(10, 4096))
    targets = Targets(tmp_path, model.family.n_blocks)
    for _ in range(2):
        assert run(model, targets)[2] == list(range(model.family.n_blocks))
    assert caplog.text.count("more than half of the free disk") == 1


def test_a_full_disk_gets_its_room_back(model, tmp_path, caplog, monkeypatch):
    write, targets = os.pwrite, Targets(tmp_path, model.family.n_blocks)
    monkeypatch.setattr(os, "pwrite", lambda file, part, at: write(file, part[: -(at > 0)], at))
    for _ in range(2):
        assert run(model, targets)[2] == list(range(model.family.n_blocks))
    assert caplog.text.count("computed anew for every point: the disk is full") == 1
    assert os.fstat(targets._file.fileno()).st_size == 0


def test_what_cannot_be_read_is_computed(model, tmp_path, caplog, monkeypatch):
    targets = Targets(tmp_path, model.family.n_blocks)
    run(model, targets)

    def broken(*_):
        raise OSError("Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    assert run(model, targets)[2] == list(range(model.family.n_blocks))


def test_a_stream_on_the_device(tmp_path):
    """Such as an accelerator has."""
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    stream, other = (storage.Samples((4, 6), np.dtype("float32"), "device") for _ in range(2))
    stream[0:4] = jax.numpy.asarray(values)
    targets = Targets(tmp_path, 1)
    targets.write(0, stream)
    assert targets.read(0, other) and np.array_equal(other[0:4], values)
    assert not targets.read(1, other)
