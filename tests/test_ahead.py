"""How far programs are queued: by the bytes that they hold."""

import pytest

from icp_jax.streaming import ahead


@pytest.mark.parametrize(("held", "waits"), [(ahead.MOST, 4), (ahead.MOST // 2, 2), (1, 0)])
def test_a_wait_once_the_queue_holds_enough(held, waits, monkeypatch):
    seen = []
    monkeypatch.setattr(ahead, "settle", lambda tree: seen.append(tree) or tree)
    queue = ahead.Ahead(held)
    assert [queue(k) for k in range(4)] == [0, 1, 2, 3]
    assert len(seen) == waits
