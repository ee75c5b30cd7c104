"""The results page and the guide: what zeros are worth on disk and in a product."""

from __future__ import annotations

from page_text import BUSY, measured, read, share, table

PACK, MATVEC, SENT = "bench_pack.json", "bench_matvec.json", "bench_pack_transfer.json"
SIDES = ("dense float32", "dense bfloat16", "bitmask", "rows", "kernel")


def sizes() -> str:
    """Bits a weight in each format, and the sizes of whole files."""
    rows = read(PACK)["rows"]
    names = [row["name"] for row in rows]
    formats = {
        "safetensors, `.bin`, GGUF in 16 bits | everything": [16.0 for _ in rows],
        "safetensors, gzip | what unpacks it first": [row["gzip_bits"] for row in rows],
        "`icp-jax pack` | icp-jax; NumPy, in 60 lines": [row["bits"] for row in rows],
        **{
            f"`icp-jax pack --bits {n}` | icp-jax; NumPy": [row["int_bits"][n] for row in rows]
            for n in ("8", "4")
        },
        "`icp-jax pack --format macko` | MACKO-SpMV's CUDA kernels": [
            row["macko_bits"] for row in rows
        ],
    }
    bits = [[name, *(f"{x:.2f}" for x in of)] for name, of in formats.items()]
    files = [
        [
            row["name"],
            f"{row['file']['bytes'] / 1e6:.2f}",
            f"{row['file']['packed_bytes'] / 1e6:.2f}",
            f"{row['file']['ratio']:.2f}",
            f"{row['linears']['ratio']:.2f}",
        ]
        for row in rows
    ]
    masks = ", ".join(f"{r['name']} {r['mask_saved']:.1%}" for r in rows if r["mask_saved"])
    return f"""\
Bits a weight of the linears of opt-pydoc, pruned by magnitude:

{_wide(table(["format | who reads it", *names], bits))}

Whole files, the dense embedding included. Perplexity is the same to the last digit before and after
packing, and unpacking gives the same bytes.

{table(["zeros", "MB", "packed MB", "ratio", "ratio of the linears"], files)}

Deflated bitmasks are in these sizes. They save, of the packed linears: {masks}.

{measured(PACK)}
"""


def _wide(text: str) -> str:
    """A table whose second column is text too."""
    head, line, *rest = text.split("\n")
    return "\n".join([head, line.replace("| --- |", "| --- | --- |", 1), *rest])


def products() -> str:
    """Milliseconds of a product with one vector, on a CPU."""
    found = read(MATVEC)
    rows = []
    for row in found["rows"]:
        ms = row["ms"]
        fastest = min(ms[side] for side in SIDES[:2])
        others = [f"{ms[side]:.2f} ({fastest / ms[side]:.2f}x)" for side in SIDES[2:]]
        dense = [f"{ms[side]:.2f}" for side in SIDES[:2]]
        rows.append([row["name"], share(row["sparsity"]), *dense, *others])
    busy = " Other work ran beside it." if found["load_before"] > BUSY else ""
    return f"""\
Milliseconds of one matrix times one vector on one core of a CPU, as decoding at batch 1 has it; in
brackets, the speed beside the faster dense product. *bitmask* unpacks the matrix in the jitted
program.
*rows* holds each row's non-zeros in bfloat16 with 16-bit columns, 32 bits for each non-zero.
*kernel* is a C function of 15 lines for AVX-512 processors, which reads the bitmask and the
non-zeros. It is no part of the package: it says what such a kernel would gain.{busy}

{table(["matrix", "zeros", *SIDES], rows)}

{measured(MATVEC)}
"""


def sent() -> str:
    """Bytes sent to the device for each block of a packed model."""
    found = read(SENT)
    rows = [
        [
            name,
            f"{row['block_bytes'] / 1e6:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['seconds']:.1f}",
        ]
        for name, row in found["rows"].items()
    ]
    windows, length = found["windows"]
    busy = " Other work ran beside it." if found["load_before"] > BUSY else ""
    return f"""\
A random Llama of {found["model_bytes"] / 1e9:.2f} GB in float16 with
{found["blocks"]} blocks, {share(found["sparsity"])} of each matrix zero: bytes handed to the
transfer for each block, and the time of `eval` on {windows} windows of {length} tokens. The ratio
of bytes is {found["ratio"]:.2f}; the formula, 16 / (1 + 16 (1 - s)), gives {found["formula"]:.2f}:
the non-zeros are padded, so that few programs unpack all matrices of one shape.
The device is the CPU here: the bytes are those of a GPU, the times are not. Perplexity is the same
to the last digit. Reading a packed block on the host, with its checksums and inflating, takes
{found["block_host_cpu_seconds"]:.2f} CPU seconds.{busy}

{table(["model", "MB a block", "CPU seconds", "seconds"], rows)}

{measured(SENT)}
"""


def zeros() -> str:
    """The section of the results page."""
    return f"## What zeros are worth\n\n{guide()}"


def guide() -> str:
    """The text of docs/_generated/zeros.md."""
    return f"{sizes()}\n{sent()}\n{products()}"
