"""Names that come from files: what they may be, and that nothing is written anywhere else."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import write_opt

import icp_jax
from converters.files import open_checkpoint
from converters.names import create, inside, shards
from converters.rules import ConversionError
from icp_jax.cli import main
from icp_jax.errors import InputError
from icp_jax.runs.convert import convert
from icp_jax.runs.orbax import LAYOUT, SIDE

INDEX = "model.safetensors.index.json"
REFUSED = [
    "/abs.safetensors",
    "../up.safetensors",
    "a/../../x.safetensors",
    "a/../x.safetensors",
    "..",
    ".",
    "",
    "a/",
    "C:/x.safetensors",
    "C:x.safetensors",
    "a\\b.safetensors",
    "\\\\host\\x.safetensors",
    "a\0b.safetensors",
    "\ud800.safetensors",
    "x" * 250 + ".safetensors",
    "x/" * 2100 + "a.safetensors",
    None,
    3,
    ["a.safetensors"],
    {},
]


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: ascii(name)[:30])
def test_a_name_that_leads_elsewhere_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(ConversionError, match="index.json names the file") as error:
        inside(tmp_path, name, "index.json")
    line = str(error.value)
    assert "\n" not in line and len(line) < 300 and line.isascii()


@pytest.mark.parametrize("name", ["a.safetensors", "./a", "w/x/a.b", "ü", "..a", "a..", "a b"])
def test_a_name_inside_the_folder_is_taken(tmp_path, name):
    assert inside(tmp_path, name, "index.json") == tmp_path / name


@pytest.mark.parametrize(
    "names",
    [["a.safetensors", "./a.safetensors"], ["a.safetensors", "a.safetensors/b.safetensors"]],
)
def test_two_shards_in_one_place(tmp_path, names):
    with pytest.raises(ConversionError, match="whose path another name also uses"):
        shards(tmp_path, names, (".safetensors",), "index.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "a", "tokenizer"])
def test_no_shard_takes_the_place_of_another_file(tmp_path, name):
    with pytest.raises(ConversionError, match="its name must end in .safetensors"):
        shards(tmp_path, [name], (".safetensors",), "index.json")


def test_nothing_is_written_through_a_link(tmp_path):
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir(), out.mkdir()
    (outside / "a").write_text("mine")
    (out / "file").symlink_to(outside / "a")
    (out / "folder").symlink_to(outside)
    for name in ("file", "folder/a", "folder/new"):
        with pytest.raises(ConversionError, match="written through a link"):
            create(out, name)
    assert [p.name for p in outside.iterdir()] == ["a"] and (outside / "a").read_text() == "mine"


def indexed(folder: Path, source: Path, name: object, at: str | None = None) -> Path:
    """The model of `source` with an index that gives its one shard a name."""
    folder.mkdir(parents=True)
    shutil.copy(source / "config.json", folder)
    if at is not None:
        (folder / at).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "model.safetensors", folder / at)
    weight_map = dict.fromkeys(open_checkpoint(source).names(), name)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder: files with their bytes."""
    found = {}
    for path in folder.rglob("*"):
        found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return found


@pytest.mark.parametrize("kind", ["absolute", "above", "above later"])
def test_an_index_that_names_a_shard_elsewhere(tmp_path, opt_folder, capsys, kind):
    shutil.copy(opt_folder / "model.safetensors", tmp_path / "w.safetensors")
    name = {"absolute": str(tmp_path / "w.safetensors"), "above": "../w.safetensors"}
    indexed(tmp_path / "m", opt_folder, name.get(kind, "x/../../w.safetensors"))
    (tmp_path / "m" / "x").mkdir()
    before = tree(tmp_path)
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{INDEX} names the file " in line and "stay inside its folder" in line
    with pytest.raises(ConversionError, match="names the file"):
        icp_jax.load(tmp_path / "m")
    assert tree(tmp_path) == before


def test_a_shard_in_a_subfolder_goes_all_the_way(tmp_path, opt_folder, bundled):
    source = indexed(tmp_path / "m", opt_folder, "weights/a.safetensors", "weights/a.safetensors")
    for path in bundled.glob("tokenizer*"):
        shutil.copy(path, source)
    (tmp_path / "text.txt").write_text((bundled / "calibration.txt").read_text()[:6000])
    args = ["--data", str(tmp_path / "text.txt"), "--samples", "4"]
    for model, out in ((source, "a"), (opt_folder, "b")):
        run = ["prune", str(model), str(tmp_path / out), *args]
        assert main([*run, "--sparsity", "0.5", "--method", "wanda"]) == 0
    got = tmp_path / "a" / "weights" / "a.safetensors"
    assert got.read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    record = json.loads((tmp_path / "a" / "icp_run.json").read_text())
    assert list(record["inputs"]["weights"]) == ["weights/a.safetensors"]
    assert main(["verify", str(tmp_path / "a"), "--source", str(source)]) == 0
    convert(tmp_path / "a", tmp_path / "orbax"), convert(tmp_path / "orbax", tmp_path / "back")
    assert (tmp_path / "back/weights/a.safetensors").read_bytes() == got.read_bytes()
    saved = icp_jax.save(icp_jax.load(tmp_path / "a"), tmp_path / "saved")
    assert (saved / "weights/a.safetensors").read_bytes() == got.read_bytes()


def test_a_hub_cache_is_read_through_its_links_and_never_written_through(tmp_path, opt_folder):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    shutil.copytree(opt_folder, blobs), snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    before = tree(blobs)
    model = icp_jax.load(snapshot)
    model.params["embed"]["tokens"]["embedding"][:] = 0
    out = icp_jax.save(model, tmp_path / "out")
    assert tree(blobs) == before and not any(path.is_symlink() for path in out.iterdir())


@pytest.fixture(scope="module")
def orbax(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("orbax")
    write_opt(place / "m", num_hidden_layers=1, shard_bytes=90_000)
    convert(place / "m", place / "o")
    return place / "o"


def spoil_shape(layout):
    next(iter(layout["entries"].values()))[2] = [1, 1]


def spoil_place(layout):
    next(iter(layout["entries"].values()))[3] = 0


def under(file):
    """Shards in a folder that has the name of a file."""

    def spoil(layout):
        layout["headers"] = {f"{file}/{k}": v for k, v in layout["headers"].items()}
        for entry in layout["entries"].values():
            entry[0] = f"{file}/{entry[0]}"

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x.update(headers={**x["headers"], "../victim/a.safetensors": ""}),
        lambda x: x.update(headers={**x["headers"], "config.json": ""}),
        under("config.json"),
        under(INDEX),
        lambda x: x.update(headers={k: "!" for k in x["headers"]}),
        lambda x: x.update(headers=[]),
        lambda x: x.update(entries={}),
        lambda x: x.update(index="[]"),
        lambda x: x.update(index=3),
        lambda x: x.update(torch=True),
        lambda x: x.clear(),
        spoil_shape,
        spoil_place,
    ],
)
def test_a_layout_that_was_tampered_with(tmp_path, orbax, spoil):
    shutil.copytree(orbax, tmp_path / "o")
    (tmp_path / "victim").mkdir()
    path = tmp_path / "o" / SIDE / LAYOUT
    layout = json.loads(path.read_text())
    spoil(layout)
    path.write_text(json.dumps(layout))
    before = tree(tmp_path)
    with pytest.raises((ConversionError, InputError)) as error:
        convert(tmp_path / "o", tmp_path / "back")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert tree(tmp_path) == before


# ---------------------------------------------------------------- any name at all
