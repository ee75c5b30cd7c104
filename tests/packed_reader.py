"""A reader of packed files, from docs/format.md alone: NumPy, and nothing of this project."""

import hashlib
import json
import math

import numpy as np

DTYPES = {"F16": "<u2", "BF16": "<u2", "F32": "<u4", "F64": "<u8", "U8": "u1"}  # their bits


def tensors_of(raw):
    """(metadata, tensors with their checksums) of a safetensors file."""
    start = 8 + int.from_bytes(raw[:8], "little")
    header, found = json.loads(raw[8:start]), {}
    metadata = header.pop("__metadata__", None)
    for name, told in header.items():
        first, last = told["data_offsets"]
        data = raw[start + first : start + last]
        array = np.frombuffer(data, DTYPES[told["dtype"]]).reshape(told["shape"])
        found[name] = array, hashlib.sha256(data).hexdigest()
    return metadata, found


def places(form, parts, size):
    """Which elements of a tensor are stored."""
    if form == "bitmask":
        return np.unpackbits(parts["bitmask"], count=size, bitorder="little").astype(bool)
    n, m = map(int, form.split(":"))
    masks = np.array([x for x in range(2**m) if bin(x).count("1") == n])
    k = max(k for k in range(1, 33) if math.comb(m, n) ** k <= 2**32)
    numbers = np.frombuffer(parts["codes"].tobytes(), "<u4").astype(np.int64)
    codes = numbers[:, None] // len(masks) ** np.arange(k) % len(masks)
    groups = masks[codes.reshape(-1)[: size // m]]
    return (groups[:, None] >> np.arange(m) & 1).reshape(-1).astype(bool)


def read(path):
    """The bytes of the file that was packed into `path`."""
    metadata, held = tensors_of(path.read_bytes())
    text = metadata["icp_jax.packed"]
    assert hashlib.sha256(text.encode()).hexdigest() == metadata["icp_jax.packed.sha256"]
    told = json.loads(text)
    assert told["version"] == 1 and held["packed:header"][1] == told["header"]
    first = held["packed:header"][0].tobytes()
    old = json.loads(first[8:])
    out = bytearray(len(first) + max(t["data_offsets"][1] for t in old.values() if "dtype" in t))
    out[: len(first)] = first
    for name, how in told["tensors"].items():
        stored = {p: held[name if p == "plain" else f"{name}:{p}"] for p in how["sha256"]}
        assert {part: digest for part, (_, digest) in stored.items()} == how["sha256"]
        parts = {part: array for part, (array, _) in stored.items()}
        full = parts.get("plain")
        if full is None:
            full = np.zeros(math.prod(old[name]["shape"]), parts["nonzeros"].dtype)
            full[places(how["form"], parts, full.size)] = parts["nonzeros"]
        data = full.tobytes()
        at = len(first) + old[name]["data_offsets"][0]
        out[at : at + len(data)] = data
    return bytes(out)
