"""Any name in an index or a layout: nothing but the output is written to."""

import base64
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.files import open_checkpoint, open_writer
from converters.layout import plan_layout
from converters.names import INDEX
from converters.rules import ConversionError
from converters.safetensors_files import Writer
from icp_jax.runs.orbax import LAYOUT, layout_record, read_layout

PARTS = ["..", ".", "", "a", "weights", "victim", "model.safetensors", "b.safetensors", "C:", "\\"]
PARTS += ["~", "link", "config.json", "ü", "\0", "\ud800", "x" * 300, "out", "source", INDEX]
NAMES = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=5).map("/".join),
    st.lists(st.sampled_from(PARTS), max_size=3).map(lambda p: "/".join(p) + ".safetensors"),
    st.sampled_from(["victim", "source", "out"]).map("{place}/".__add__),
    st.text(max_size=12),
    st.text(max_size=12).map(lambda text: f"{text}.safetensors"),
    st.none() | st.integers() | st.lists(st.text(max_size=3), max_size=2),
)


def state(place: Path) -> list[tuple]:
    """What lies outside the output, and when it was last touched."""
    found = []
    for folder, folders, files in os.walk(place):
        if Path(folder) == place:
            folders.remove("out") if "out" in folders else None
        for name in (*folders, *files):
            about = os.lstat(Path(folder, name))
            found.append((folder, name, about.st_ino, about.st_size, about.st_mtime_ns))
    return sorted(found)


def write_all(reader, out: Path) -> None:
    with open_writer(out, reader.layout) as writer:
        for name in reader.names():
            writer.write(name, reader.read(name))


class Place:
    """A checkpoint of two tensors in two shards, and files that nobody may touch."""

    def __init__(self, place: Path):
        self.path, self.source, self.out = place, place / "source", place / "out"
        for name in ("source", "victim", "source/weights"):
            (place / name).mkdir()
        self.tensors = {k: np.full(64, k == "a", np.float32) for k in "ab"}
        both = {k: (v.dtype, v.shape) for k, v in self.tensors.items()}
        for folder in (place / "victim", self.source, self.source / "weights"):
            with Writer(folder, plan_layout(both, {}, 256)) as writer:
                for name, tensor in self.tensors.items():
                    writer.write(name, tensor)
        (self.source / "link").symlink_to(place / "victim")
        (place / "victim" / "model.safetensors").write_bytes(b"mine")
        self.weight_map = json.loads((self.source / INDEX).read_text())["weight_map"]
        self.layout = layout_record(open_checkpoint(self.source).layout)

    def try_index(self, name: object) -> None:
        named = name.replace("{place}", str(self.path)) if isinstance(name, str) else name
        text = json.dumps({"weight_map": {**self.weight_map, "b": named}})
        (self.source / INDEX).write_text(text)
        self._try(lambda: write_all(open_checkpoint(self.source), self.out))

    def try_layout(self, name: object) -> None:
        named = name.replace("{place}", str(self.path)) if isinstance(name, str) else str(name)
        headers = dict(self.layout["headers"])
        headers[named] = headers.pop(self.weight_map["b"])
        entries = {
            k: [named if k == "b" else v[0], *v[1:]] for k, v in self.layout["entries"].items()
        }
        path = self.source / LAYOUT
        path.write_text(json.dumps({**self.layout, "headers": headers, "entries": entries}))

        def work() -> None:
            with open_writer(self.out, read_layout(path, self.out)) as writer:
                for key, tensor in self.tensors.items():
                    writer.write(key, tensor)

        self._try(work)

    def _try(self, work) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        before = state(self.path)
        try:
            work()
        except ConversionError as error:
            assert "\n" not in str(error) and not list(self.out.iterdir())
        assert state(self.path) == before


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("fuzz"))


def fuzz(examples: int):
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, suppress_health_check=quiet)


@fuzz(300)
@given(name=NAMES)
def test_any_name_in_an_index_or_a_layout_touches_the_output_alone(fuzzed, name):
    fuzzed.try_index(name)
    fuzzed.try_layout(name)


@pytest.mark.slow
@fuzz(10_000)
@given(name=NAMES)
def test_10_000_names_in_indexes_and_layouts(fuzzed, name):
    fuzzed.try_index(name)
    fuzzed.try_layout(name)


def test_the_fuzzed_place_is_written_to_where_the_names_are_good(fuzzed):
    """So that the tests above can fail."""
    fuzzed.try_index("model-00002-of-00002.safetensors")
    assert len(list(fuzzed.out.glob("*.safetensors"))) == 2
    fuzzed.try_layout("deep/er/b.safetensors")
    assert (fuzzed.out / "deep/er/b.safetensors").is_file()
    assert base64.b64decode(next(iter(fuzzed.layout["headers"].values())))
