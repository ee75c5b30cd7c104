"""One stage in this process.

python -m gpu.stage MODULE JOB.json RECORD.json    # from benchmarks/
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from gpu.files import write


class Skip(Exception):
    """A stage that cannot run here; the message says why."""


def main(module: str, job_file: str, out: str) -> None:
    from icp_jax.backend import compile_cache

    compile_cache.use()  # as the command line does, before JAX is imported
    import common

    from gpu import card

    job = json.loads(Path(job_file).read_text())
    told: dict[str, Any] = {**common.provenance(), "command": job["command"]}
    told["card"] = card.ask("name,driver_version")

    def keep(found: dict[str, Any]) -> None:
        """The record so far: what a later failure of this stage does not cost."""
        write(Path(out), told | {"result": found})

    try:
        keep(importlib.import_module(f"gpu.{module}").run(job, keep))
    except Skip as why:
        write(Path(out), told | {"skipped": str(why)})


if __name__ == "__main__":
    # the stages raise the Skip of this name, not of __main__
    from gpu import stage

    stage.main(*sys.argv[1:])
