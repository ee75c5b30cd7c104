"""Ways to spoil a model's folder and its data, for the tests of bad input."""

import gzip
import json
import shutil

import numpy as np
from conftest import write_opt


def edit_config(place, **changes):
    path = place / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def respell(place, **options):
    """The model written anew, with other weights or another layout."""
    shutil.rmtree(place / "model")
    write_opt(place / "model", **options)


def weights(place):
    return place / "model" / "model.safetensors"


def truncate(place):
    data = weights(place).read_bytes()
    weights(place).write_bytes(data[: len(data) // 2])


def drop_shard(place):
    respell(place, shard_bytes=60_000)
    sorted((place / "model").glob("model-*.safetensors"))[1].unlink()


def repeat_tensor(place):
    respell(place, shard_bytes=60_000)
    first, second = sorted((place / "model").glob("model-*.safetensors"))[:2]
    index = place / "model" / "model.safetensors.index.json"
    text = index.read_text().replace(second.name, "model-copy.safetensors")
    index.write_text(text)
    shutil.copy(first, place / "model" / "model-copy.safetensors")


def rename_tensor(old, new):
    def spoil(place):
        data = weights(place).read_bytes()
        assert old in data and len(old) == len(new)
        weights(place).write_bytes(data.replace(old, new, 1))

    return spoil


def set_weight(value, name="layers.1.fc2.weight"):
    def spoil(place):
        from safetensors.numpy import load_file, save_file

        tensors = dict(load_file(weights(place)))
        tensors[f"model.decoder.{name}"] = value(tensors[f"model.decoder.{name}"])
        save_file(tensors, weights(place), {"format": "pt"})

    return spoil


def one_nan(w):
    w = w.copy()
    w.flat[3] = np.nan
    return w


def incomplete_header(place):
    header = b'{"a": {"dtype": "F32", "data_offsets": [0, 0]}}'
    weights(place).write_bytes(len(header).to_bytes(8, "little") + header)


def corrupt_gzip(place):
    packed = bytearray(gzip.compress(b'{"text": "some words of a text"}\n' * 999))
    packed[10] = 0b111  # the first block's kind, behind the header: there is no such kind
    (place / "a.jsonl.gz").write_bytes(packed)


def write(name, content):
    return lambda place: (place / name).write_bytes(content)


def ids(name, values):
    return lambda place: np.save(place / name, np.asarray(values))
