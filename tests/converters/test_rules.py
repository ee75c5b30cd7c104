"""The tables refuse by name, and know nothing of icp_jax."""

import ast
from pathlib import Path

import pytest
from conftest import OPT

import converters
from converters import ConversionError, table_for
from converters.rules import check_shape, insert, lookup

NAMES = [p.name for p in table_for("opt").place(OPT) if p.name != "lm_head.weight"]


def test_converters_import_nothing_of_icp_jax():
    files = sorted(Path(converters.__file__).parent.glob("*.py"))
    assert len(files) >= 4
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "icp_jax" for name in names), path


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda n: [*n, "model.decoder.layers.0.fc3.weight"], "unknown tensor .*fc3"),
        (lambda n: [x for x in n if "1.fc2.bias" not in x], "missing tensor .*1.fc2.bias"),
        (lambda n: [*n, n[3]], "duplicate tensor"),
        (lambda n: n[1:], "missing tensor .*embed_tokens"),
    ],
)
def test_refuses_by_name(change, message):
    with pytest.raises(ConversionError, match=message):
        table_for("opt").place(OPT, change(NAMES))


def test_both_spellings_and_a_stored_head():
    for names in (NAMES, [n.removeprefix("model.") for n in NAMES], [*NAMES, "lm_head.weight"]):
        assert sorted(p.name for p in table_for("opt").place(OPT, names)) == sorted(names)


def test_wrong_shape_is_named():
    placed = table_for("opt").place(OPT, NAMES)[0]
    with pytest.raises(ConversionError, match=r"embed_tokens.weight' has shape \[3, 4\]"):
        check_shape(placed, (3, 4))


def test_unknown_family():
    with pytest.raises(ConversionError, match="'bert' is not supported"):
        table_for("bert")


def test_insert_and_lookup():
    tree = {}
    insert(tree, ("a", "b"), 1)
    assert lookup(tree, ("a", "b")) == 1
    with pytest.raises(ConversionError, match="a/b"):
        insert(tree, ("a", "b"), 2)
    with pytest.raises(ConversionError, match="a/c"):
        lookup(tree, ("a", "c"))
