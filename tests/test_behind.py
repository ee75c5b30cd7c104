"""Host work done while the device goes on: in order, its errors told, the result the same."""

import json
import threading

import pytest
from runs import contents
from test_resume import config_for, cut_off, place, whole  # noqa: F401

from icp_jax.runs.resume import Work
from icp_jax.runs.run import prune_folder
from icp_jax.streaming import loop
from icp_jax.streaming.background import Background


@pytest.mark.parametrize("apart", [False, True])
def test_what_is_given_is_done_in_order(apart):
    done = []
    with Background(apart) as behind:
        for k in range(5):
            behind.run(lambda k=k: done.append(k))
            behind.then(lambda k=k: done.append(-k))
    assert done == [0, 0, 1, -1, 2, -2, 3, -3, 4, -4]


def test_the_caller_goes_on_and_waits_with_the_next():
    go, seen = threading.Event(), []
    with Background(apart=True) as behind:
        behind.run(lambda: seen.append(go.wait(10)))
        assert seen == []
        go.set()
        behind.run(lambda: seen.append("next"))
        assert seen[0] is True


def fail():
    raise OSError("no room")


def test_an_error_is_raised_and_what_came_after_is_not_done():
    done = []
    with pytest.raises(OSError, match="no room"), Background(apart=True) as behind:
        behind.run(fail)
        behind.then(lambda: done.append(1))
        behind.run(lambda: done.append(2))
    with pytest.raises(OSError, match="no room"), Background(apart=True) as behind:
        behind.run(fail)
    with pytest.raises(KeyError), Background(apart=True) as behind:  # the caller's own goes first
        behind.run(fail)
        raise KeyError
    assert done == []


@pytest.fixture
def apart(monkeypatch):
    """As on an accelerator."""
    monkeypatch.setattr(loop, "Background", lambda apart: Background(True))


def test_the_result_is_the_same(place, whole, apart):  # noqa: F811
    config = config_for(place)
    cut_off(config, 2, "statistics")
    prune_folder(config, resume=True)
    assert contents(place / "work" / "out") == whole


def test_a_block_that_could_not_be_written_is_not_whole(place, whole, apart, monkeypatch):  # noqa: F811
    real = Work.write

    def write(self, t, *rest):
        if t == 2:
            raise OSError(28, "No space left on device")
        real(self, t, *rest)

    config = config_for(place)
    with monkeypatch.context() as patch:
        patch.setattr(Work, "write", write)
        with pytest.raises(OSError, match="No space") as told:
            prune_folder(config)
    assert told.value.__notes__ == ["after block 1; continue with --resume"]
    manifests = sorted(p.name for p in (place / "work" / ".out.partial").glob("block-*.json"))
    assert manifests == ["block-00000.json", "block-00001.json"]
    assert json.loads((place / "work" / ".out.partial" / manifests[1]).read_text())
    prune_folder(config, resume=True)
    assert contents(place / "work" / "out") == whole
