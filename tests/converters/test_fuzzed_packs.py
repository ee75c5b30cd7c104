"""Packed files with any bytes changed: an error of one line, or the same tensors."""

import json
import tracemalloc
from contextlib import closing

import ml_dtypes
import numpy as np
import pytest
from packing import NAME, redescribed, zeroed
from safetensors.numpy import save_file

from converters.packed_forms import DEFLATED
from converters.packed_reader import PackedReader
from converters.packed_write import pack_file
from converters.rules import ConversionError
from converters.safetensors_files import SafetensorsReader

FEW, MANY = 250, 100_000
PLAIN = "model.safetensors"
FORMS = {
    None: ["bitmask", "2:4", "bitmask", "plain", "plain", "bitmask"],
    4: ["int4:16", "int4:16", "int4:9", "plain", "plain", "int4:48"],
}  # by the bits of the non-zeros
VALUES = [
    0,
    1,
    -1,
    2**63,
    1e400,
    "",
    "plain",
    "bitmask",
    "2:4",
    "7:8",
    "int4:16",
    "int8:1",
    None,
    [],
    {},
    "x" * 999,
]


class Place:
    """A packed file of six tensors, and what they are."""

    def __init__(self, folder, bits):
        rng = np.random.default_rng(0)
        self.folder, self.path = folder, folder / NAME
        tensors = {
            "a": zeroed(rng, (12, 16), 0.8).astype(np.float16),
            "b": zeroed(rng, (12, 16), 0, (2, 4)).astype(ml_dtypes.bfloat16),
            "c": zeroed(rng, (7, 9), 0.7).astype(np.float32),
            "d": rng.normal(size=(5, 3)).astype(np.float16),
            "e": np.array(2.5, np.float32),
            "f": zeroed(rng, (24, 48), 0.9).astype(np.float16),
        }
        save_file(tensors, folder / PLAIN, {"format": "pt"})
        with closing(SafetensorsReader({PLAIN: folder / PLAIN}, None)) as reader:
            packings = pack_file(reader, PLAIN, folder, bits)
        assert [packings[name].form for name in "abcdef"] == FORMS[bits]
        with closing(PackedReader({PLAIN: self.path}, None)) as reader:
            self.want = {name: reader.read(name).tobytes() for name in tensors}
        assert DEFLATED in packings["f"].parts and DEFLATED not in packings["a"].parts
        for name, packing in packings.items():
            assert not packing.exact or self.want[name] == tensors[name].tobytes()
        self.good = self.path.read_bytes()

    def refused(self) -> bool:
        """Whether the file as it is now gives an error; if not, it must give the tensors."""
        try:
            reader = PackedReader({PLAIN: self.path}, None)
            found = {name: reader.read(name).tobytes() for name in reader.names()}
        except ConversionError as error:
            assert len(str(error).splitlines()) == 1 and str(error).isascii()
            return True
        assert found == self.want
        return False


@pytest.fixture(params=FORMS, ids=["as stored", "4 bits"])
def place(request, tmp_path):
    return Place(tmp_path, request.param)


def mutated(rng, good):
    """A file with bits flipped, bytes replaced, a part cut out, moved, doubled or filled up."""
    data = bytearray(good)
    for _ in range(1 + rng.integers(3) ** 2):
        at, to = sorted(map(int, rng.integers(0, len(data) + 1, 2)))
        to = min(to, at + 64)
        kind = rng.integers(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at:to] = rng.bytes(to - at)
        elif kind == 2:
            del data[at:to]
        elif kind == 3:
            data[at:at] = data[at:to]
        elif kind == 4:
            part = data[at:to]
            del data[at:to]
            where = int(rng.integers(len(data) + 1))
            data[where:where] = part
        elif kind == 5:
            del data[at:]
        else:
            data[at:to] = bytes(to - at)
    return bytes(data)


def fuzz(place, count, seed):
    rng, refused = np.random.default_rng(seed), 0
    for _ in range(count):
        data = mutated(rng, place.good)
        place.path.write_bytes(data)
        was_refused = place.refused()
        assert was_refused or data == place.good or len(data) == len(place.good)
        refused += was_refused
    assert refused > 0.9 * count


def test_some_changes(place):
    tracemalloc.start()
    try:
        fuzz(place, FEW, 0)
        assert tracemalloc.get_traced_memory()[1] < 50 * len(place.good) + (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_many_changes(place):
    fuzz(place, MANY, 1)


def changed(rng, node):
    """A JSON value with one of its leaves or branches replaced, removed or moved."""
    if rng.integers(3) == 0 or not isinstance(node, dict) or not node:
        return VALUES[int(rng.integers(len(VALUES)))]
    key = list(node)[int(rng.integers(len(node)))]
    other = list(node)[int(rng.integers(len(node)))]
    new = dict(node)
    kind = rng.integers(5)
    if kind == 0:
        del new[key]
    elif kind == 1:
        new[key], new[other] = node[other], node[key]
    elif kind == 2:
        new[f"{key}x"] = node[key]
    else:
        new[key] = changed(rng, node[key])
    return new


def test_a_description_that_is_signed_anew(place):
    """The checksum is right, so the sizes and names must be checked."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(FEW):
        place.path.write_bytes(place.good)
        redescribed(place.folder, lambda told: changed(rng, told))
        refused += place.refused()
    assert refused > FEW // 2


def test_a_header_that_promises_too_much(place):
    """Shapes of the tensors, larger than the file: refused before anything is allocated."""
    start = 8 + int.from_bytes(place.good[:8], "little")
    header = json.loads(place.good[8:start])
    tracemalloc.start()
    for huge in (1 << 20, 1 << 40, 1 << 62, 10**30):
        for name in header:
            if name != "__metadata__":
                told = {**header[name], "shape": [huge], "data_offsets": [0, huge]}
                new = json.dumps({**header, name: told}).encode()
                place.path.write_bytes(len(new).to_bytes(8, "little") + new + place.good[start:])
                assert place.refused()
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
