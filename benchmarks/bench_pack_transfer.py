"""Bytes sent to the device for each block of a packed model of 2 GB, and the seconds of an eval.

    python benchmarks/bench_pack_transfer.py

A random Llama in float16, 80 % of each matrix zero, is evaluated on a few short windows three
times: plain; packed, unpacked on the host as the CPU backend does; packed, sent packed and unpacked
by the device's program, as on a GPU. Bytes are those of the arrays handed to the transfer. The
device here is the CPU, so the bytes are those of a GPU, and the seconds are not. A model of one
block compiles all programs first. CPU seconds are those of all threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import common
import jax
import numpy as np

import icp_jax
from icp_jax.streaming import unpacking
from icp_jax.streaming.mesh import Devices
from icp_jax.streaming.source import FolderSource

SPARSITY = 0.8
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
WINDOWS = (2, 64)


def checkpoint(folder: Path, blocks: int) -> int:
    """A random pruned Llama; returns its bytes."""
    rng = np.random.default_rng(0)

    def tensor(p):
        if len(p.shape) < 2:
            return np.ones(p.shape, np.float32)
        drawn = rng.standard_normal(p.shape, np.float32) * np.float32(2 * p.shape[-1] ** -0.5)
        if ".layers." in p.name:
            drawn[rng.random(p.shape, np.float32) < SPARSITY] = 0
        return drawn

    return common.write_checkpoint(
        folder, CONFIG | {"num_hidden_layers": blocks}, "float16", tensor
    )


def sides(plain: Path, packed: Path, tokens: np.ndarray) -> dict[str, dict[str, Any]]:
    """The three evaluations of a model."""
    return {
        "plain": evaluated(plain, tokens, False),
        "packed, unpacked on the host": evaluated(packed, tokens, False),
        "packed, unpacked on the device": evaluated(packed, tokens, True),
    }


def evaluated(folder: Path, tokens: np.ndarray, on_device: bool) -> dict[str, Any]:
    """Bytes sent for each block, seconds, and the perplexity."""
    sent: list[int] = []
    whole = Devices.whole

    def counted(self: Devices, tree: Any) -> Any:
        sent.append(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
        return whole(self, tree)

    with mock.patch.object(Devices, "whole", counted), closing(FolderSource(folder)) as source:
        blocks = source.family.n_blocks
        started = time.perf_counter(), time.process_time()
        with mock.patch.object(unpacking, "unpacks", lambda: on_device):
            found = icp_jax.evaluate(source, tokens)
        ended = time.perf_counter(), time.process_time()
    large = [nbytes for nbytes in sent if nbytes > 1 << 20]
    assert len(large) == blocks, sent
    return {
        "block_bytes": statistics.mean(large),
        "seconds": ended[0] - started[0],
        "cpu_seconds": ended[1] - started[1],
        "perplexity": found.perplexity,
    }


def host_seconds(folder: Path) -> float:
    """Median CPU seconds to read a packed block as it is sent: checksums, inflating, padding."""
    taken = []
    with closing(FolderSource(folder)) as source:
        for t in range(source.family.n_blocks):
            started = time.process_time()
            source.packed_block(t)
            taken.append(time.process_time() - started)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=20, help="20 are 2 GB")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    tokens = np.random.default_rng(1).integers(3, 512, WINDOWS).astype(np.int32)
    with tempfile.TemporaryDirectory() as place:
        one, two = Path(place) / "one", Path(place) / "two"
        checkpoint(one, 1)
        icp_jax.pack(one, two)
        sides(one, two, tokens)  # compiles
        plain, packed = Path(place) / "plain", Path(place) / "packed"
        nbytes = checkpoint(plain, args.blocks)
        started = time.process_time()
        record = icp_jax.pack(plain, packed)
        packing = time.process_time() - started
        rows = sides(plain, packed, tokens)
        reading = host_seconds(packed)
    assert len({row["perplexity"] for row in rows.values()}) == 1
    dense, small = (row["block_bytes"] for name, row in rows.items() if "host" not in name)
    sparsity = sum(x["zeros"] for x in record["layers"]) / sum(x["size"] for x in record["layers"])
    found = {
        **common.provenance(),
        "load_before": load,
        "model_bytes": nbytes,
        "blocks": args.blocks,
        "sparsity": sparsity,
        "windows": list(WINDOWS),
        "file": {key: record[key] for key in ("bytes", "packed_bytes", "ratio")},
        "linears": {key: record["packed"][key] for key in ("bits_per_weight", "ratio")},
        "ratio": dense / small,
        "formula": 16 / (1 + 16 * (1 - sparsity)),
        "pack_cpu_seconds": packing,
        "block_host_cpu_seconds": reading,
        "rows": rows,
    }
    for name, row in rows.items():
        times = f"{row['seconds']:.1f} s, {row['cpu_seconds']:.1f} CPU seconds"
        print(f"{name}: {row['block_bytes'] / 1e6:.2f} MB a block, {times}")
    print(f"ratio {found['ratio']:.3f}, formula {found['formula']:.3f}")
    print(common.write("bench_pack_transfer.json", found))


if __name__ == "__main__":
    main()
