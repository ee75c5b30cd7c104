"""Bad input: one line that says what is wrong, status 2, nothing written, the source untouched."""

import errno
import hashlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from damage import (
    corrupt_gzip,
    drop_shard,
    edit_config,
    ids,
    incomplete_header,
    one_nan,
    rename_tensor,
    repeat_tensor,
    set_weight,
    truncate,
    weights,
    write,
)
from runs import helpful, placed

from icp_jax.cli import main


@pytest.fixture
def place(tmp_path, opt_folder, bundled):
    """A model folder to spoil, a calibration text, and a folder in which nothing may appear."""
    shutil.copytree(opt_folder, tmp_path / "model")
    text = (bundled / "calibration.txt").read_text()[:6000]
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "work").mkdir()
    return tmp_path


NONE = lambda place: None  # noqa: E731
DATA = "--data"
# what is spoilt, the arguments after `prune model work/out --data text.txt`, what
# the line says. A later --model, --out or --data replaces the earlier one.
CASES = {
    "unknown architecture": (
        lambda p: edit_config(p, model_type="bert"), [], "'bert' is not supported; supported: .*opt"),
    "no config": (lambda p: (p / "model/config.json").unlink(), [], "has no config.json"),
    "config is not JSON": (write("model/config.json", b"{"), [], "config.json is not JSON"),
    "config lacks a field": (
        lambda p: (p / "model/config.json").write_text('{"model_type": "opt"}'), [],
        "config.json has no '"),
    "no weights": (lambda p: weights(p).unlink(), [], "no weights in"),
    "missing shard": (drop_shard, [], "missing shard 'model-00002"),
    "duplicate tensor": (repeat_tensor, [], "duplicate tensor 'model"),
    "truncated safetensors": (truncate, [], "truncated"),
    "not safetensors": (write("model/model.safetensors", b"x" * 99), [], "safetensors is truncated"),
    "wrong shape": (lambda p: edit_config(p, ffn_dim=65), [], "has shape .* the config says"),
    "unknown tensor": (
        rename_tensor(b"layers.1.fc2.bias", b"layers.1.fc3.bias"), [], "unknown tensor .*fc3.bias"),
    "missing block": (lambda p: edit_config(p, num_hidden_layers=4), [], "missing tensor .*layers.3"),
    "already quantized": (
        lambda p: edit_config(p, quantization_config={}), [], "already quantized"),
    "NaN in a weight": (set_weight(one_nan), [], "layers.1.fc2.weight' has values that are not"),
    "NaN in the head": (
        set_weight(one_nan, "final_layer_norm.weight"), [],
        "tensor 'model.decoder.final_layer_norm.weight' has values that are not"),
    "incomplete header": (incomplete_header, [], "'a' in model.safetensors: its header is incomp"),
    "unknown activation": (
        lambda p: edit_config(p, activation_function="mish"), [], "'mish' is not supported"),
    "text shorter than a window": (write("text.txt", b"short"), [], "shorter than one window of 32"),
    "text is not UTF-8": (write("text.txt", b"\xff\xfe\xfa"), [], "not UTF-8"),
    "no such data": (NONE, [DATA, "nowhere.txt"], "no data 'nowhere.txt'"),
    "data of another kind": (write("a.csv", b"a,b"), [DATA, "a.csv"], "expected .txt, .jsonl"),
    "bad JSON line": (
        write("a.jsonl", b'{"text": "a"}\n{"tex'), [DATA, "a.jsonl"], "line 2 is not JSON"),
    "line without text": (write("a.jsonl", b'{"a": 1}'), [DATA, "a.jsonl"], "neither 'text' nor"),
    "gz that is not": (write("a.jsonl.gz", b"zz"), [DATA, "a.jsonl.gz"], "cannot be read"),
    "gz that is damaged": (corrupt_gzip, [DATA, "a.jsonl.gz"], "cannot be read"),
    "an id, not a list of them": (ids("a.npy", 7), [DATA, "a.npy"], "not an array of token ids"),
    "several arrays": (
        lambda p: [np.savez(p / "a.npz", a=np.arange(99)), (p / "a.npz").rename(p / "a.npy")],
        [DATA, "a.npy"], "not an array of token ids"),
    "folder that datasets did not save": (NONE, [DATA, "model"], "not a folder written by datasets"),
    "ids that are not integers": (ids("a.npy", [0.5] * 99), [DATA, "a.npy"], "integer token ids"),
    "ids beyond the vocabulary": (
        ids("a.npy", [5000] * 99), [DATA, "a.npy"], "vocabulary of 2048"),
    "no tokenizer": (
        lambda p: [(p / "model" / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
        [], "no tokenizer that can be loaded"),
    "dataset out of reach": (NONE, [DATA, "wikitext2"], "dataset wikitext2 could not be loaded"),
    "window beyond the context": (
        NONE, ["--seq-len", "64"], "from 2 to the model's context 32, got 64"),
    "no samples": (NONE, ["--samples", "0"], "samples must be at least 1"),
    "sparsity of one": (NONE, ["--sparsity", "1"], r"sparsity must be in \[0, 1\), got 1"),
    "sparsity below zero": (NONE, ["--sparsity", "-0.1"], r"sparsity must be in \[0, 1\)"),
    "sparsity is NaN": (NONE, ["--sparsity", "nan"], r"sparsity must be in \[0, 1\)"),
    "alpha and beta infeasible": (
        NONE, ["--sparsity", ".8", "--prune.beta", ".9"], r"largest feasible beta is 0\.\d{4}"),
    "alpha infeasible": (
        NONE, ["--sparsity", ".9", "--prune.alpha", "0"], "alpha must be above"),
    "bad rearrangement": (NONE, ["--prune.rearrange", "qkv"], "GIVES-TAKES; known names: qkvof1-f2"),
    "bad pattern": (NONE, ["--pattern", "4:2"], "not n:m"),
    "pattern that does not divide": (
        NONE, ["--pattern", "3:7", "--sparsity", "None"], "not a multiple of 7"),
    "pattern and alpha": (
        NONE, ["--pattern", "2:4", "--prune.alpha", "1"], "apply to unstructured"),
    "pattern and sparsity": (NONE, ["--pattern", "2:4"], "--sparsity applies to unstruct"),
    "roles listed twice": (NONE, ["--prune.rearrange", "qkq-f2"], "lists q twice; known names"),
    "rearrangement without beta": (
        NONE, ["--method", "wanda", "--prune.rearrange", "qkv-o"], "needs --prune.beta"),
    "block size without a solver": (
        NONE, ["--method", "magnitude", "--prune.block-size", "64"], "--prune.block-size applies to icp"),
    "compensation of wanda": (
        NONE, ["--method", "wanda", "--compensate.lr", "1e-3"], "--compensate.lr applies to icp"),
    "packed without bits": (NONE, ["--quant.packed"], "need --bits"),
    "damping of zero": (NONE, ["--prune.damping", "0"], "damping must be a positive"),
    "learning rate is NaN": (NONE, ["--compensate.lr", "nan"], "lr must be a positive"),
    "unknown option": (NONE, ["--prune.sparcity", ".5"], "did you mean --sparsity"),
    "option without its group": (NONE, ["--alpha", ".5"], "did you mean --prune.alpha"),
    "option without a value": (NONE, ["--dtype"], "Missing value for argument '--dtype'"),
    "value of another type": (NONE, ["--sparsity", "half"], "could not convert .*'half'"),
    "a bool is no number": (NONE, ["--bits", "True"], "--bits: invalid literal for int"),
    "unknown method": (NONE, ["--method", "obs"], "invalid choice 'obs'"),
    "stray argument": (NONE, ["extra"], "Unrecognized options: extra"),
    "unknown config": (NONE, ["--config", "opt_1m"], "no config 'opt_1m': .*opt_125m"),
    "config that fails": (
        write("c.py", b"def get_config():\n    return 1 / 0\n"), ["--config", "c.py"],
        "ZeroDivisionError"),
    "config with a bad setting": (
        write("c.py", b"import icp_jax\ndef get_config():\n    return icp_jax.RunConfig(seed=True)\n"),
        ["--config", "c.py"], "c.py: seed must be an integer, got True"),
    "config of another kind": (
        write("c.py", b"def get_config():\n    return {}\n"), ["--config", "c.py"], "must return"),
    "no such folder": (NONE, ["--model", "./nowhere"], "no such folder: ./nowhere"),
    "model is a file": (NONE, ["--model", "text.txt"], "is a file"),
    "hub id out of reach": (NONE, ["--model", "nobody/nothing"], "is not a local folder and could not be downloaded"),
    "more devices than there are": (NONE, ["--devices", "99"], "devices 99: there are only 1 .cpu"),
    "no devices": (NONE, ["--devices", "0"], "devices must be at least 1, got 0"),
    "coordinator without a port": (
        NONE, ["--hosts.coordinator", "host0", "--hosts.count", "2", "--hosts.index", "0"],
        "must be HOST:PORT or auto, got 'host0'"),
    "host beyond the count": (
        NONE, ["--hosts.coordinator", "a:1", "--hosts.count", "2", "--hosts.index", "2"],
        "hosts.count and hosts.index"),
    "hosts without a coordinator": (NONE, ["--hosts.count", "2"], "need --hosts.coordinator"),
    "output exists": (
        lambda p: (p / "work" / "out").mkdir(), [], "work/out exists already: choose another"),
    "no folder for the output": (NONE, ["--out", "a/b/c"], "does not exist"),
    "too long a name": (NONE, ["--out", "work/" + "x" * 240], "xxx' is too long a name"),
    "too long a path": (NONE, ["--out", "work/" + "x/" * 2100 + "o"], "is too long a name"),
    "too long a name on the way": (NONE, ["--out", f"{'x' * 300}/o"], "is too long a name"),
    "side file out of reach": (
        lambda p: (p / "model/vocab.txt").symlink_to("gone"), [], "vocab.txt must be copied but cannot be read"),
    "work folder of another program": (
        lambda p: [(p / "work/.out.partial").mkdir(), (p / "work/.out.partial/a.txt").write_text("")],
        [], "is not the work folder of a run: it has 'a.txt', which no run writes; move it away"),
}  # fmt: skip


def tree_hash(folder):
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def run(place, capsys, monkeypatch, args, message):
    monkeypatch.chdir(place)
    source, before = tree_hash(place / "model"), sorted((place / "work").rglob("*"))
    status = main(placed(args))
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("block ")]
    assert status == 2 and len(lines) == 1, err
    assert lines[0].startswith("icp-jax: ") and "Traceback" not in err
    assert re.search(message, lines[0]), lines[0]
    assert helpful(lines[0], args), lines[0]
    assert out == ""
    assert sorted((place / "work").rglob("*")) == before
    assert tree_hash(place / "model") == source


@pytest.mark.parametrize("case", CASES)
def test_prune(place, capsys, monkeypatch, case):
    spoil, extra, message = CASES[case]
    spoil(place)
    args = ["prune", "model", "work/out", DATA, "text.txt"]
    args += ["--samples", "4", "--sparsity", "0.5"]
    run(place, capsys, monkeypatch, [*args, *extra], message)


OTHERS = {
    "unknown command": (["prun", "model"], "unknown command 'prun'; did you mean prune"),
    "eval of a short text": (
        ["eval", "model", "--data", "short.txt"], "evaluation data short.txt has .* one window of 32"),
    "eval without data": (["eval", "model"], "data"),
    "eval: a prompt for text": (
        ["eval", "model", "--data", "text.txt", "--prompt", "point"], "prompt is for SAM"),
    "eval: a seed for text": (
        ["eval", "model", "--data", "text.txt", "--seed", "0"], "seed is for SAM"),
    "plan: a size of no unit": (
        ["plan", "model", "--device-memory", "1GiB", "--device-memory", "2Gbit"],
        "--device-memory must be a size"),
    "eval beyond the context": (
        ["eval", "model", "--data", "text.txt", "--seq-len", "99"], "context 32, got 99"),
    "convert onto something": (["convert", "model", "work"], "work exists already"),
    "convert of nothing": (["convert", "./nowhere", "work/out"], "no such folder"),
    "demo onto something": (["demo", "--out", "work"], "is not an earlier demo"),
    "demo beyond": (["demo", "--out", "work/d", "--sparsity", "1.5"], r"sparsity must be in \[0, 1\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_other_commands(place, capsys, monkeypatch, case):
    (place / "short.txt").write_text("short")
    run(place, capsys, monkeypatch, *OTHERS[case])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_disk_that_fills_before_a_block_is_finished(place, capsys, monkeypatch, code):
    def save(folder, tree):
        folder.mkdir()
        (folder / "half").write_bytes(b"half")
        raise OSError(code, "no room")

    monkeypatch.setattr("icp_jax.runs.checkpoints.save_tree", save)
    args = ["prune", "model", "work/out", DATA, "text.txt"]
    args += ["--samples", "4", "--sparsity", "0.5"]
    run(place, capsys, monkeypatch, args, "disk is full; nothing was kept")


def test_a_true_limit_on_file_size(place):
    """The same by the system's own hand: no file may grow beyond 4 kB."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000)); "
        "from icp_jax.cli import main; sys.exit(main())"
    )
    args = ["prune", "model", "work/out", DATA, "text.txt"]
    args += ["--samples", "4", "--sparsity", "0.5"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "disk is full" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert list((place / "work").iterdir()) == []
