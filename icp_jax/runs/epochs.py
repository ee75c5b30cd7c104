"""The last finished epoch of the global pass in a work folder, sealed with a checksum.

It has all that the next epochs need: the blocks with Adam's moments, those of the best epoch, and
the losses so far.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from icp_jax.core.compensate import State
from icp_jax.core.distill import DistillMetrics
from icp_jax.core.passes import Params
from icp_jax.runs.checkpoints import checksum
from icp_jax.runs.export import sync
from icp_jax.runs.trees import read_tree, save_tree
from icp_jax.runs.work_folder import WorkFolder
from icp_jax.streaming import tune
from icp_jax.streaming.distill import Reached
from icp_jax.streaming.hidden import WholeSource

METRICS = "metrics"


class EpochCheckpoints:
    """The epochs in a work folder, of which there is one, and two while one is written."""

    def __init__(self, folder: WorkFolder):
        self.folder = folder

    def write(self, found: Reached) -> None:
        """Write an epoch, seal it, and remove the one before it."""
        path = self.folder.epoch(found.epochs)
        if path.exists():  # unsealed, from a run that was cut off
            shutil.rmtree(path)
        path.mkdir()
        save_tree(path / METRICS, found.metrics._asdict())
        for t, state in enumerate(found.states):  # one by one, since Orbax copies what it writes
            leaves = map(np.asarray, jax.tree.leaves(state))
            tree: dict[str, Any] = {"state": {f"{k:04d}": leaf for k, leaf in enumerate(leaves)}}
            if found.best is not None:
                tree["best"] = found.best[t]
            save_tree(path / f"{t:05d}", tree)
        sync(path)
        seal = {"sha256": checksum(self.folder.path, path, {})}
        self.folder.write(self.folder.epoch_manifest(found.epochs), seal)
        self.folder.sweep_epochs(found.epochs)

    def read(self, source: WholeSource, say: Callable[[str], None]) -> Reached | None:
        """The last epoch; None without one, or if its checksum does not match."""
        epoch = self.folder.last_epoch()
        if not epoch:
            return None
        path = self.folder.epoch(epoch)
        try:
            seal = json.loads(self.folder.epoch_manifest(epoch).read_text())
            if seal["sha256"] != checksum(self.folder.path, path, {}):
                raise ValueError("another checksum")
            metrics = DistillMetrics(**read_tree(path / METRICS))
            trees = [read_tree(path / f"{t:05d}") for t in range(source.family.n_blocks)]
        except (OSError, ValueError, KeyError, TypeError):
            say(f"the checkpoint of epoch {epoch} is damaged: the global pass starts again")
            return None
        states = [_state(source.block(t), tree["state"]) for t, tree in enumerate(trees)]
        best = [tree["best"] for tree in trees] if metrics.best else None
        say(f"resuming after epoch {epoch} of the global pass")
        return Reached(metrics, states, best)


def _state(block: Params, leaves: dict[str, np.ndarray]) -> State:
    """The state of a block from its leaves in order."""
    shapes = jax.eval_shape(tune.start, block)
    found: State = jax.tree.unflatten(
        jax.tree.structure(shapes), [leaf for _, leaf in sorted(leaves.items())]
    )
    return found
