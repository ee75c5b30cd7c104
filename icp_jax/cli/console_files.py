"""Format what `verify` and `pack` find in the files of a model, for standard output."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.table import Table


def verified(facts: dict[str, Any]) -> None:
    """Print the facts of `verify`: one row per layer, then a summary."""
    table = Table("tensor", title=facts["folder"])
    for name in ("size", "zeros", "sparsity", "pattern"):
        table.add_column(name, justify="right")
    for layer in facts["layers"]:
        table.add_row(
            layer["name"],
            str(layer["size"]),
            str(layer["zeros"]),
            f"{layer['sparsity']:.4f}",
            " ".join(layer["patterns"]),
        )
    out = Console()
    out.print(table)
    lines = [f"sparsity {facts['sparsity']:.6f}: {facts['zeros']} of {facts['size']} weights"]
    lines.append(f"tensors that are not finite: {', '.join(facts['not_finite']) or 'none'}")
    if sizes := facts["packed"]:
        said = "packed: {1} MB in place of {0}, {2} times smaller; all checksums are right"
        lines.append(said.format(*_megabytes(sizes["bytes"], sizes["packed_bytes"])))
    if "changed" in facts:
        lines.append(f"{len(facts['changed'])} tensors changed, {len(facts['unchanged'])} did not")
        for kind in ("reshaped", "missing", "added"):
            lines.append(f"{kind}: {', '.join(facts[kind]) or 'none'}")
        others = [n for n in facts["changed"] if n not in {x["name"] for x in facts["layers"]}]
        lines.append(f"other changed tensors: {', '.join(_by_name(others)) or 'none'}")
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)


def packed(record: dict[str, Any]) -> None:
    """Print the sizes of a packed folder: one row per form, and all weights."""
    table = Table("form")
    for name in ("tensors", "sparsity", "bits a weight", "MB", "packed MB", "ratio"):
        table.add_column(name, justify="right")
    forms = dict.fromkeys(layer["form"] for layer in record["layers"])
    for form in forms:
        of = [layer for layer in record["layers"] if layer["form"] == form]
        zeros, size, plain, small = (
            sum(layer[key] for layer in of) for key in ("zeros", "size", "bytes", "packed_bytes")
        )
        bits = f"{8 * small / size:.2f}"
        table.add_row(form, str(len(of)), f"{zeros / size:.4f}", bits, *_megabytes(plain, small))
    table.add_section()
    table.add_row("all weights", "", "", "", *_megabytes(record["bytes"], record["packed_bytes"]))
    out = Console()
    out.print(table)
    if not forms:
        out.print("no matrix has enough zeros to be packed", highlight=False)
    if record["rounded"]:
        out.print("weights were rounded: unpack gives the rounded ones", highlight=False)
    out.print(f"output       {record['out']}", highlight=False, soft_wrap=True)


def for_macko(record: dict[str, Any]) -> None:
    """Print the sizes of an export for MACKO."""
    plain, small, ratio = _megabytes(record["packed"]["bytes"], record["packed"]["packed_bytes"])
    print(f"{record['out']}/{record['file']}: linears of {plain} MB in {small} MB, ratio {ratio}")
    if record["rounded"]:
        print("weights were rounded to float16")


def _megabytes(plain: int, small: int) -> tuple[str, str, str]:
    return f"{plain / 1e6:.2f}", f"{small / 1e6:.2f}", f"{plain / small:.2f}"


def _by_name(names: list[str]) -> list[str]:
    """Tensor names, with those of several blocks merged: `layers.1-5.fc1.bias`."""
    blocks: dict[str, list[int]] = {}
    for name in names:
        head, *rest = re.split(r"\.(\d+)\.", name, maxsplit=1)
        found = blocks.setdefault(f"{head}.{{}}.{rest[1]}" if rest else name, [])
        found += map(int, rest[:1])
    return [name.format(_ranges(sorted(where))) for name, where in blocks.items()]


def _ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 7] as `1-3,7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
