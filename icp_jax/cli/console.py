"""Format the result of each command for standard output."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.table import Table

from converters.files import REPORT
from icp_jax.cli.console_distill import epochs, kept


def demo(result: dict[str, Any]) -> None:
    """Print the demo's table and the paths of its files."""
    dense, calibration = result["dense"], result.get("calibration")
    table = Table("method")
    peaks = ("peak MiB",) if calibration else ()
    for name in ("sparsity", "perplexity", "seconds", *peaks):
        table.add_column(name, justify="right")
    table.add_row("dense", "0.0000", f"{dense['perplexity']:.2f}", "")
    for row in result["methods"]:
        table.add_row(
            row["method"],
            f"{row['sparsity']:.4f}",
            f"{row['perplexity']:.2f}",
            f"{row['seconds']:.1f}",
            *([str(row["peak_host_mib"])] if calibration else []),
        )
    out = Console()
    title = f"{result['model']}: {dense['tokens']} held-out tokens, windows of {dense['seq_len']}"
    out.print(title, highlight=False)
    if calibration:
        said = f"calibrated on {calibration['samples']} windows of {calibration['seq_len']} tokens"
        out.print(said, highlight=False)
    out.print(table)
    if texts := result.get("texts"):
        out.print(f"\n{result['prompt']} ...", highlight=False, markup=False, soft_wrap=True)
        for name, text in texts.items():
            said = f"{name + ':':<10} {' '.join(text.split())}"
            out.print(said, highlight=False, markup=False, soft_wrap=True)
        out.print()
    out.print(f"pruned checkpoint: {result['checkpoint']}", highlight=False, soft_wrap=True)
    out.print(f"error growth:      {result['figure']}", highlight=False, soft_wrap=True)
    out.print(f"report:            {result['report']}", highlight=False, soft_wrap=True)


def evaluated(found: Any) -> None:
    """Print a perplexity, or the mask metrics of SAM."""
    if hasattr(found, "iou"):
        print(
            f"IoU {found.iou:.4f} ({found.masks} masks on {found.images} images, "
            f"one {found.prompt} per mask)\n"
            f"pixel accuracy {found.pixel_accuracy:.4f}, precision {found.precision:.4f}, "
            f"recall {found.recall:.4f}, F1 {found.f1:.4f}"
        )
        if found.crowds:
            print(f"{found.crowds} crowd annotations skipped")
        if found.left_out:
            print(f"{found.left_out} invalid annotations skipped; the first: {found.unusable[0]}")
        return
    error = found.standard_error
    count = found.tokens // found.seq_len
    lines = {
        "perplexity": f"{found.perplexity:.4f}" + ("" if error is None else f" +- {error:.2g}"),
        "loss": f"mean {found.cross_entropy:.4f}, median {found.median_cross_entropy:.4f} nats",
        "tokens": f"{found.tokens} in {count} window{'s' * (count > 1)} of {found.seq_len}",
    }
    if found.kl is not None:
        lines["against"] = f"KL {found.kl:.4f} nats, {found.agreement:.1%} the same first choice"
    for name, said in lines.items():
        print(f"{name:<12} {said}")


def asked(found: Any) -> None:
    """Print the scores of zero-shot tasks, and the mean of their accuracies."""
    names = list(dict.fromkeys(name for score in found.tasks for name in score.metrics))
    table = Table("task")
    for name in ("questions", *names):
        table.add_column(name, justify="right")
    for score in found.tasks:
        cells = (_with_error(score.metrics.get(n), score.errors.get(n)) for n in names)
        table.add_row(score.task, str(score.questions), *cells)
    if found.mean is not None and len(found.tasks) > 1:
        mean = _with_error(found.mean, found.standard_error)
        table.add_section()
        table.add_row("mean", "", *(mean if name == "acc" else "" for name in names))
    Console().print(table)


def _with_error(value: float | None, error: float | None) -> str:
    """A value +- its standard error; empty where there is none."""
    if value is None:
        return ""
    return f"{value:.4f}" + ("" if error is None else f" +- {error:.4f}")


def segmented(record: dict[str, Any]) -> None:
    """Print the size of the mask and its predicted IoU."""
    print(f"{record['out']}: {record['area']} pixels, predicted IoU {record['predicted_iou']:.4f}")


def dry_run(found: Any) -> None:
    """Print the zeros per layer, with equal blocks folded into one row, and the cost."""
    table = Table("block", "layer", "role", title=f"{found.model} by {found.method}")
    for name in ("inputs", "outputs", "zeros", "sparsity"):
        table.add_column(name, justify="right")
    for blocks, row in _folded(found.layers):
        table.add_row(
            blocks,
            row["layer"],
            row["role"],
            str(row["inputs"]),
            str(row["outputs"]),
            str(row["zeros"]),
            "left" if row["left"] else f"{row['sparsity']:.4f}",
        )
    out = Console()
    out.print(table)
    for line in (
        f"total: {found.zeros} of {found.size} weights, sparsity {found.zeros / found.size:.6f}"
        + _of_pruned(found.pruned_sparsity),
        f"calibration: {found.samples} "
        + ("images of {} patches" if found.kind == "vision" else "windows of {} tokens").format(
            found.seq_len
        ),
        f"cost: {found.flops / 1e12:.3g} TFLOP of matrix products; streams "
        f"{found.stream_bytes / 2**20:.0f} MiB; "
        f"a block's float32 linears {found.block_bytes / 2**20:.0f} MiB on the device",
        "nothing was written",
    ):
        out.print(line, highlight=False, soft_wrap=True)


def planned(found: Any) -> None:
    """Print a plan: one row per phase, then the totals and the chosen settings."""
    need, seconds = found.need, found.seconds
    table = Table("phase", title=f"{found.model} on {found.device_kind}")
    for name in ("device MiB", "host MiB", "TFLOP", "moved GiB", "at least s"):
        table.add_column(name, justify="right")
    for phase in need.phases:
        table.add_row(
            phase.name,
            f"{phase.device / 2**20:.0f}",
            f"{phase.host / 2**20:.0f}",
            f"{found.flops[phase.name] / 1e12:.3g}",
            f"{found.moved[phase.name] / 2**30:.2f}",
            f"{seconds[phase.name]:.1f}",
        )
    out = Console()
    out.print(table)
    for where in ("device", "host"):
        limit = found.limits[where]
        of = f" of {limit / 2**30:.2f}" if limit else ""
        out.print(f"{where}: {getattr(need, where) / 2**30:.2f}{of} GiB", highlight=False)
    memory, rates = need.memory, found.rates
    batch = memory.batch_tokens or "the default number of"
    remat = " --memory.remat True" if memory.remat else ""
    for line in (
        f"disk: {need.disk / 2**30:.2f} GiB",
        f"settings: --memory.streams {memory.streams} --memory.stream-dtype {memory.stream_dtype}"
        f"{remat}, {batch} tokens a batch; streams {need.streams / 2**30:.2f} GiB",
        f"time: at least {sum(seconds.values()):.0f} s, at {rates.float32 / 1e9:.0f} GFLOP/s in "
        f"float32, {rates.compute / 1e9:.0f} in the blocks, {rates.bandwidth / 1e9:.1f} GB/s moved",
    ):
        out.print(line, highlight=False, soft_wrap=True)


def _of_pruned(sparsity: float | None) -> str:
    """The sparsity without the layers that are left as they are, if there are any."""
    return "" if sparsity is None else f" ({sparsity:.6f} of the layers that are pruned)"


def _folded(layers: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(blocks, row) pairs; consecutive blocks with equal counts become one row, such as `0-4`."""
    runs: list[tuple[list[int], dict[str, Any]]] = []
    for row in sorted(layers, key=lambda row: row["block"]):
        same = {k: v for k, v in row.items() if k != "block"}
        for blocks, first in runs:
            if first == same and blocks[-1] in (row["block"], row["block"] - 1):
                blocks.append(row["block"])
                break
        else:
            runs.append(([row["block"]], same))
    return [
        (f"{b[0]}-{b[-1]}" if b[0] != b[-1] else str(b[0]), row)
        for b, row in sorted(runs, key=lambda run: run[0][0])
    ]


def _losses(tuned: Any) -> tuple[str, str]:
    return ("", "") if tuned is None else (f"{tuned.before:.4g}", f"{tuned.after:.4g}")


def pruned(done: Any) -> None:
    """Print a finished run: one row per block, the totals, and the next command to run."""
    from icp_jax.core.outcomes import remedies

    table, retuned = Table("block"), any(block.retune for block in done.blocks)
    names: tuple[str, ...] = ("error after", "loss before", "loss after")
    if retuned:
        names = ("error", "loss", "tuned", "pruned", "re-tuned")
    for name in ("sparsity", *names, "seconds"):
        table.add_column(name, justify="right")
    for block in done.blocks:
        zeros, size = (sum(getattr(layer, k) for layer in block.layers) for k in ("zeros", "size"))
        losses = [*_losses(block.compensation), *(_losses(block.retune) if retuned else ())]
        spent = f"{sum(block.seconds.values()):.1f}"
        table.add_row(str(block.block), f"{zeros / size:.4f}", f"{block.error:.4f}", *losses, spent)
    out = Console()
    out.print(table)
    if done.global_pass:
        out.print(epochs(done.global_pass))
    device = "" if done.peak_device_mib is None else f", {done.peak_device_mib} MiB on the device"
    data = {"text": "wikitext2", "vision": "coco:DIR"}[done.kind]
    needed = [line for block in done.blocks for line in remedies(block)]
    for name, said in (
        ("sparsity", f"{done.sparsity:.6f}{_of_pruned(done.pruned_sparsity)}"),
        ("time", f"{done.seconds:.1f} s"),
        ("peak memory", f"{done.peak_host_mib} MiB{device}"),
        *(("remedy", line) for line in needed or ["none"]),
        *([("kept", kept(done.global_pass))] if done.global_pass else []),
        ("output", str(done.out)),
        ("report", str(done.out / REPORT)),
        ("next", f"icp-jax eval {shlex.quote(str(done.out))} --data {data}"),
    ):
        out.print(f"{name:<12} {said}", highlight=False, soft_wrap=True)
