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

from icp_jax.core.distill import DistillMetrics
from icp_jax.runs.checkpoints import checksum
from icp_jax.runs.export import sync
from icp_jax.runs.trees import read_tree, save_tree
from icp_jax.runs.work_folder import WorkFolder
from icp_jax.streaming import tune
from icp_jax.streaming.distill import Reached
from icp_jax.streaming.hidden import WholeSource


class EpochCheckpoints:
    """The epochs in a work folder, of which there is one, and two while one is written."""

    def __init__(self, folder: WorkFolder):
        self.folder = folder

    def write(self, found: Reached) -> None:
        """Write an epoch, seal it, and remove the one before it."""
        epoch, names = found.epochs, DistillMetrics._fields
        tree: dict[str, Any] = {"metrics": dict(zip(names, found.metrics, strict=True))}
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(found.states)]
        tree["states"] = {f"{k:06d}": leaf for k, leaf in enumerate(leaves)}
        if found.best is not None:
            tree["best"] = {str(t): block for t, block in enumerate(found.best)}
        path = self.folder.epoch(epoch)
        if path.exists():  # unsealed, from a run that was cut off
            shutil.rmtree(path)
        save_tree(path, tree)
        sync(path)
        seal = {"sha256": checksum(self.folder.path, path, {})}
        self.folder.write(self.folder.epoch_manifest(epoch), seal)
        self.folder.sweep_epochs(epoch)

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
            tree = read_tree(path)
        except (OSError, ValueError, KeyError, TypeError):
            say(f"the checkpoint of epoch {epoch} is damaged: the global pass starts again")
            return None
        shapes = [
            jax.eval_shape(tune.start, source.block(t)) for t in range(source.family.n_blocks)
        ]
        leaves = [leaf for _, leaf in sorted(tree["states"].items())]
        states = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        best = tree.get("best")
        if best is not None:
            best = [best[str(t)] for t in range(source.family.n_blocks)]
        say(f"resuming after epoch {epoch} of the global pass")
        return Reached(DistillMetrics(**tree["metrics"]), states, best)
