"""The stages in the order of their worth, and which of them still fit into the time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Stage(NamedTuple):
    """One stage. It is a module of this folder with `run(job, keep)`."""

    name: str
    module: str
    seconds: int  # on a GPU: it starts only where so much time is left
    limit: int  # seconds after which it is stopped
    platform: str = ""  # of JAX in the stage's own process; cpu where its children use the card


STAGES = (
    Stage("same", "same", 45, 120),
    Stage("7b", "seven", 130, 240, "cpu"),
    Stage("plan", "planned", 25, 60, "cpu"),
    Stage("compensate", "tuning", 60, 110),
    Stage("torch", "plain_torch", 55, 110, "cpu"),
    Stage("tests", "gpu_tests", 90, 180, "cpu"),
    Stage("sweep", "points", 45, 90),
)
BY_NAME = {stage.name: stage for stage in STAGES}


def named(names: str) -> list[Stage]:
    """The stages of a list such as `same,7b`, in the order of their worth. Raises ValueError."""
    asked = [name for name in names.split(",") if name]
    unknown = [name for name in asked if name not in BY_NAME]
    if unknown:
        raise ValueError(f"no stage {', '.join(unknown)}: there are {', '.join(BY_NAME)}")
    return [stage for stage in STAGES if stage.name in asked or not asked]


def fitting(stages: Iterable[Stage], left: float) -> tuple[list[Stage], list[Stage]]:
    """(stages that fit into `left` seconds one after the other, those that do not).

    A later stage is taken where an earlier one is too long.
    """
    taken, dropped = [], []
    for stage in stages:
        (taken if stage.seconds <= left else dropped).append(stage)
        left -= stage.seconds if stage.seconds <= left else 0
    return taken, dropped
