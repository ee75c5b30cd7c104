"""Signals wait for a tick once a run ticks, and for nothing before."""

import os
import signal

import pytest

from icp_jax import interrupts


@pytest.fixture
def installed():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    interrupts.install()
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_next_tick(installed, number):
    seen = []
    with interrupts.at_ticks(seen.append) as tick:
        tick(1)
        os.kill(os.getpid(), number)
        seen.append("still here")
        with pytest.raises(KeyboardInterrupt):
            tick(2)
    assert seen == [1, "still here"]


def test_before_the_first_tick_and_after_the_last_nothing_waits(installed):
    with interrupts.at_ticks(lambda: None), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    interrupts.install()
    with interrupts.at_ticks(lambda: None) as tick:
        tick()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
