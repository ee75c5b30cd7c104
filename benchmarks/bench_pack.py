"""What zeros are worth on disk: bits a weight of the bundled model's linears, in several formats.

    python benchmarks/bench_pack.py

The bundled model is pruned by magnitude; each folder is packed, unpacked, compared and evaluated.
gzip: of the linears' bytes as they are. MACKO: its layout for the same matrices. mask_saved: the
share of the packed bytes that deflating the bitmasks saves, where `pack` does.
"""

from __future__ import annotations

import argparse
import filecmp
import gzip
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import common
import numpy as np

import icp_jax
from converters.files import open_checkpoint
from converters.packed_forms import DEFLATED
from icp_jax import PruneConfig
from icp_jax.demo import BUNDLED
from icp_jax.runs.macko import compressed

LEVEL = 6  # gzip's own default
BITS = (
    8,
    4,
)  # of integers in place of the non-zeros, rounded here: the sizes are those of exact ones
POINTS: dict[str, dict[str, Any]] = {
    **{f"{s:.0%}": {"sparsity": s} for s in (0.5, 0.6, 0.7, 0.8, 0.9)},
    "2:4": {"pattern": "2:4"},
    "4:8": {"pattern": "4:8"},
}


def squeezed(data: bytes) -> int:
    return len(gzip.compress(data, LEVEL))


def timed(work) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def point(name: str, settings: dict[str, Any], model: Any, tokens: np.ndarray) -> dict[str, Any]:
    """Sizes and seconds of one pruned model."""
    pruned, _ = icp_jax.prune(model, tokens, PruneConfig(method="magnitude", **settings))
    with tempfile.TemporaryDirectory() as place:
        plain, packed, again = (Path(place) / n for n in ("plain", "packed", "again"))
        icp_jax.save(pruned, plain)
        packing, record = timed(lambda: icp_jax.pack(plain, packed))
        unpacking, _ = timed(lambda: icp_jax.unpack(packed, again))
        fewer = {
            bits: icp_jax.pack(plain, Path(place) / f"int{bits}", bits=bits)["packed"]
            for bits in BITS
        }
        names = [path.name for path in plain.iterdir()]
        assert filecmp.cmpfiles(plain, again, names, shallow=False)[0] == names
        heldout = BUNDLED / "heldout.txt"
        scores = [icp_jax.evaluate(m, heldout, limit=16).perplexity for m in (plain, packed)]
        assert scores[0] == scores[1]
        size, layers = record["packed"]["size"], [layer["name"] for layer in record["layers"]]
        squeeze, macko, saved = 0, 0, 0
        with closing(open_checkpoint(packed)) as reader:
            for layer in layers:
                tensor = reader.read(layer)
                squeeze += squeezed(tensor.tobytes())
                macko += sum(array.nbytes for array in compressed(tensor)[:3])
                if DEFLATED in (parts := reader.stored(layer).parts):
                    saved += -(-tensor.size // 8) - parts[DEFLATED].nbytes
    share = record["layers"][0]["sparsity"] if "pattern" in settings else settings["sparsity"]
    return {
        "name": name,
        "sparsity": share,
        "form": record["layers"][0]["form"],
        "bits": record["packed"]["bits_per_weight"],
        "gzip_bits": 8 * squeeze / size,
        "macko_bits": 8 * macko / size,
        "int_bits": {f"{bits}": of["bits_per_weight"] for bits, of in fewer.items()},
        "mask_saved": saved / (record["packed"]["packed_bytes"] + saved),
        "file": {key: record[key] for key in ("bytes", "packed_bytes", "ratio")},
        "linears": {key: record["packed"][key] for key in ("bytes", "packed_bytes", "ratio")},
        "seconds": {"pack": packing, "unpack": unpacking},
        "perplexity": scores[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    model = icp_jax.load(BUNDLED)
    tokens = icp_jax.calibrate(model, BUNDLED / "calibration.txt", samples=4, seq_len=64)
    rows = []
    for name, settings in POINTS.items():
        rows.append(row := point(name, settings, model, tokens))
        print(f"{name:5} {row['bits']:.2f} bits, file x{row['file']['ratio']:.2f}", flush=True)
    record = {**common.provenance(), "gzip_level": LEVEL, "rows": rows}
    print(common.write("bench_pack.json", record))


if __name__ == "__main__":
    main()
