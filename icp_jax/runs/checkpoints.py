"""Checkpoints of pruned blocks in the work folder, each sealed with a checksum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from icp_jax.core.outcomes import BlockReport
from icp_jax.core.passes import Params
from icp_jax.core.quantize import Grid
from icp_jax.runs.export import sync
from icp_jax.runs.records import block_record, canonical, read_block, sha256
from icp_jax.runs.trees import read_tree, save_tree
from icp_jax.runs.work_folder import WorkFolder
from icp_jax.streaming.layout import apart, together


def checksum(root: Path, folder: Path, record: dict[str, Any]) -> str:
    """The digest of a record and of a folder's files, with their names relative to `root`."""
    parts: list[bytes | Path] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts += [f"{path.relative_to(root)} {path.stat().st_size}\n".encode(), path]
    return sha256(*parts, canonical(record))


class Checkpoints:
    """The block checkpoints of a work folder. A block counts as finished once it is sealed."""

    def __init__(self, folder: WorkFolder):
        self.folder = folder

    def write(self, t: int, params: Params, grids: Mapping[str, Grid]) -> None:
        """Write the params and quantization grids of a pruned block."""
        by_name = {name: grid._asdict() for name, grid in grids.items()}
        plain, turned = apart(params)
        save_tree(self.folder.block(t), {"params": plain, "turned": turned, "grids": by_name})

    def seal(self, report: BlockReport) -> None:
        """Seal the last written block: write its report and its checksum."""
        record = block_record(report)
        sync(self.folder.block(report.block))
        manifest = {"report": record, "sha256": self._checksum(report.block, record)}
        self.folder.write(self.folder.manifest(report.block), manifest)

    def intact(self, t: int) -> BlockReport | None:
        """The report of block t; None if the block's checksum does not match."""
        try:
            manifest = json.loads(self.folder.manifest(t).read_text())
            if manifest["sha256"] == self._checksum(t, manifest["report"]):
                return read_block(manifest["report"])
        except (ValueError, TypeError, KeyError, FileNotFoundError):
            return None
        return None

    def _checksum(self, t: int, report: dict[str, Any]) -> str:
        return checksum(self.folder.path, self.folder.block(t), report)

    def read(self, t: int) -> tuple[Params, dict[str, Grid]]:
        """The params of a finished block in the source's dtypes, and its grids by linear."""
        tree = read_tree(self.folder.block(t))
        params = together(tree["params"], tree.get("turned", {}))
        return params, {name: Grid(**grid) for name, grid in tree["grids"].items()}

    def params(self, t: int) -> Params:
        """The params of a finished block."""
        return self.read(t)[0]
