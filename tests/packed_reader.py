"""A reader of packed files, from docs/format.md alone: NumPy, and nothing of this project."""

import hashlib
import json
import math
import zlib

import ml_dtypes
import numpy as np

DTYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": "<f4", "F64": "<f8", "U8": "u1"}


def tensor(form, parts, size):
    """The elements of a tensor, in order."""
    if form == "plain":
        return parts["plain"]
    if "codes" in parts:
        n, m = map(int, form.split(":"))
        masks = np.array([x for x in range(2**m) if x.bit_count() == n])
        k = max(k for k in range(1, 33) if len(masks) ** k <= 2**32)
        numbers = parts["codes"].view("<u4").astype(np.int64)
        codes = numbers[:, None] // len(masks) ** np.arange(k) % len(masks)
        groups = masks[codes.reshape(-1)[: size // m]]
        stored = np.flatnonzero(groups[:, None] >> np.arange(m) & 1)
    else:
        bits = zlib.decompress(parts["deflated"]) if "deflated" in parts else parts["bitmask"]
        stored = np.flatnonzero(np.unpackbits(np.frombuffer(bits, "u1"), bitorder="little"))
    values, scale = parts.get("nonzeros"), parts.get("scale")
    if values is None:
        bits, group = map(int, form.removeprefix("int").split(":"))
        levels = parts["levels"]
        levels = np.stack([levels % 16, levels // 16], 1).reshape(-1) if bits == 4 else levels
        steps = levels[: len(stored)].astype(np.float32) - parts["zero"][stored // group]
        values = (steps * scale[stored // group].astype(np.float32)).astype(scale.dtype)
    (full := np.zeros(size, values.dtype))[stored] = values
    return full


def read(path):
    """The bytes of the file that was packed into `path`."""
    raw, held, digests = path.read_bytes(), {}, {}
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    metadata = header.pop("__metadata__")
    for name, told in header.items():
        data = raw[slice(*(start + offset for offset in told["data_offsets"]))]
        held[name] = np.frombuffer(data, DTYPES[told["dtype"]])
        digests[name] = hashlib.sha256(data).hexdigest()
    told = json.loads(text := metadata["icp_jax.packed"])
    assert hashlib.sha256(text.encode()).hexdigest() == metadata["icp_jax.packed.sha256"]
    assert told["version"] in (1, 2) and digests["packed:header"] == told["header"]
    out = bytearray(first := held["packed:header"].tobytes())
    old = json.loads(first[8:])
    for name, how in sorted(told["tensors"].items(), key=lambda item: old[item[0]]["data_offsets"]):
        names = {part: name if part == "plain" else f"{name}:{part}" for part in how["sha256"]}
        assert {part: digests[names[part]] for part in names} == how["sha256"]
        parts = {part: held[names[part]] for part in names}
        out += tensor(how["form"], parts, math.prod(old[name]["shape"])).tobytes()
    return bytes(out)
