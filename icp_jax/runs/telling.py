"""What a run tells besides its weights and its record: the report, texts, and trackers.

None of it changes the weights, and none of it can make a run fail once it has begun.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from converters.files import RECORD, REPORT
from icp_jax.core.outcomes import BlockReport
from icp_jax.evaluation.continued import check_prompt, continued
from icp_jax.report import tracking, write
from icp_jax.runs.export import write_json
from icp_jax.runs.records import block_record, peak_mib
from icp_jax.streaming import storage
from icp_jax.streaming.source import FolderSource

Say = Callable[[str], None]


class Telling:
    """The report, the texts and the trackers of a run: a context manager, which ends the trackers.

    prompt: what both models go on from, for the report; empty: no texts. track: trackers, see
    `icp_jax.report.tracking.names`. Raises InputError for trackers that are not installed.
    """

    def __init__(self, prompt: str, track: str, say: Say):
        self.prompt, self.track, self.say = prompt, track, say
        tracking.names(track)
        self.trackers: tracking.Trackers | None = None

    def begin(self, settings: dict[str, Any], source: FolderSource, out: Path, again: bool) -> None:
        """Check the prompt and open the trackers.

        settings: as given, by dotted name. again: the run is resumed. Raises InputError.
        """
        if self.prompt:
            check_prompt(source, self.prompt)
        if self.track:
            self.trackers = tracking.Trackers(self.track, out, settings, self.say, again)

    def block(self, report: BlockReport) -> None:
        """Send the figures of a finished block to the trackers."""
        if self.trackers is None:
            return
        peak = storage.device_peak()
        device = None if peak is None else peak / 2**20
        found = tracking.values(block_record(report), host=peak_mib(), device=device)
        self.trackers.log(report.block, found)

    def write(self, record: dict[str, Any], source: Path, export: Path, out: Path) -> None:
        """Write the record, with the texts, and the report into the folder that becomes `out`."""
        record["texts"] = self._texts(source, export)
        write_json(export / RECORD, record)
        page = partial(write.run_html, record)
        write.attempt(export / REPORT, page, self.say, out)

    def _texts(self, dense: Path, pruned: Path) -> dict[str, str] | None:
        """What both models write after the prompt; None without one, or if they cannot."""
        if not self.prompt:
            return None
        try:
            before, after = (continued(model, self.prompt) for model in (dense, pruned))
        except Exception as error:  # a finished run never fails because of its texts
            self.say(f"the report has no texts: {' '.join(str(error).split())}")
            return None
        return {"prompt": self.prompt, "before": before, "after": after}

    def __enter__(self) -> Telling:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.trackers is not None:
            self.trackers.close(done=error is None)
