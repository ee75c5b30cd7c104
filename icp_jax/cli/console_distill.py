"""Format the result of a distillation for standard output."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.table import Table

from converters.files import REPORT


def distilled(record: dict[str, Any]) -> None:
    """Print a finished distillation: the KL of every epoch, the totals, and what to run next."""
    out, found, known = Console(), record["global_pass"], record["blocks"]
    out.print(epochs(found))
    lines = {"sparsity": f"{record['sparsity']:.6f}", "time": f"{found['seconds']:.1f} s"}
    device = found["peak_device_mib"]
    on_device = "" if device is None else f", {device} MiB on the device"
    lines["peak memory"] = f"{found['peak_host_mib']} MiB{on_device}"
    lines["kept"] = kept(found)
    lines |= {"output": record["out"]} | ({"report": f"{record['out']}/{REPORT}"} if known else {})
    words = ["icp-jax", "eval", record["out"], "--data", "wikitext2", "--against", found["dense"]]
    for name, said in (lines | {"next": shlex.join(words)}).items():
        out.print(f"{name:<12} {said}", highlight=False, soft_wrap=True)


def epochs(found: dict[str, Any]) -> Table:
    """The KL of each epoch of a global pass."""
    count = found["heldout_windows"]
    table = Table("epoch")
    for name in ("KL while tuned on", f"KL on {count} held-out window{'s' * (count > 1)}"):
        table.add_column(name, justify="right")
    for k, (tuned, held) in enumerate(zip([None, *found["training_kl"]], found["kl"], strict=True)):
        cells = ["" if tuned is None and not k else _nats(tuned), _nats(held)]
        table.add_row(str(k) if k else "as given", *cells)
    return table


def _nats(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def kept(found: dict[str, Any]) -> str:
    """Which epoch of a global pass is in the output."""
    if found["best"]:
        return f"epoch {found['best']}"
    return "the given weights: no epoch was better; lower the rate, or give more windows"
