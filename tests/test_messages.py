"""What the command line says: help, old spellings, completions, colours, the end of a run."""

import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
from runs import helpful

from icp_jax.cli import main
from icp_jax.cli.commands import COMMANDS
from icp_jax.cli.options import GROUPS, OPTION, RENAMED, run_config
from icp_jax.cli.parse import SHELLS, parse

COMMON = ["method", "sparsity", "data", "memory", "output"]
COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


@pytest.fixture
def data(tmp_path):
    """Token ids: six windows of 16."""
    np.save(tmp_path / "ids.npy", np.arange(96).reshape(6, 16))
    return str(tmp_path / "ids.npy")


def pruned(opt_folder, tmp_path, data, *options):
    out = tmp_path / "out"
    args = ["prune", str(opt_folder), str(out), "--data", data, "--seq-len", "16"]
    return main([*args, "--sparsity", "0.5", "--method", "wanda", *options]), out


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize(
    "line",
    [
        "icp-jax: something went wrong",
        "icp-jax: the weights are strange",
        "icp-jax: a.txt is shorter than a window",
        f"icp-jax: {'x' * 300}: give another",
    ],
)
def test_a_message_without_help_is_noticed(line):
    assert not helpful(line, ["prune", "model", "--sparsity"])


@pytest.mark.parametrize(
    "line",
    [
        "icp-jax: --bits must be from 2 to 8, got 9",
        "icp-jax: out exists already: choose another output folder",
        "icp-jax: a.txt cannot be read",
    ],
)
def test_a_message_with_help_is_known(line):
    assert helpful(line, ["prune", "--data", "a.txt"])


# ---------------------------------------------------------------- help


def prune_help(capsys):
    with pytest.raises(SystemExit):
        main(["prune", "-h"])
    return capsys.readouterr().out


def test_common_options_come_first(capsys):
    titles = re.findall(r"^(?:╭─)? (\w+) options\b", prune_help(capsys), re.MULTILINE)
    assert titles[:5] == COMMON
    assert sorted(titles[5:]) == sorted({*GROUPS, "hosts"} - set(COMMON))


def test_the_arguments_are_marked_as_required(capsys):
    box = prune_help(capsys).split(" positional arguments ")[1].split(" options ")[0]
    model, out = re.split(r"\n. OUT ", re.split(r"\n. MODEL ", box)[1])
    assert model.count("(required)") == out.count("(required)") == 1


def test_every_option_says_what_unset_means(capsys):
    """A flag is off; any other option has a default in its text, or one that the help adds."""
    entries = re.split(r"\n(?:│ |  )(?=--)", prune_help(capsys))[1:]
    valued = [entry for entry in entries if re.match(r"--\S+ [{A-Z]\S+(?: {2}|\s*[│\n])", entry)]
    assert len(valued) > 20 and len(entries) > len(valued)
    for entry in valued:
        required = entry.startswith(("--hosts.count", "--hosts.index"))
        assert re.search(r"\bDefault:|\(default:", entry) or required, entry


@pytest.mark.parametrize("command", COMMANDS)
def test_a_default_is_said_once(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "{None" not in out and "(default: None)" not in out and "(default: False)" not in out
    assert not re.search(r"Default: [^.]*\. \(default", out)


# ---------------------------------------------------------------- old spellings

VALUES = {
    "--prune.method": "wanda", "--prune.sparsity": "0.5", "--prune.pattern": "2:4",
    "--quant.bits": "4", "--calibration.data": "a.txt", "--calibration.samples": "3",
    "--calibration.seq-len": "8", "--memory.device": "2GiB", "--memory.host": "3GiB",
    "--model": "m", "--out": "o",
}  # fmt: skip


@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize("old", RENAMED)
def test_an_old_spelling_works_and_names_the_new_one(old, equals):
    new, value, said = RENAMED[old], VALUES[old], []
    given = [f"{old}={value}"] if equals else [old, value]
    others = [name for name in ("m", "o") if name != value]
    expected = ["prune", "m", "o", *([] if new.isupper() else [new, value])]
    assert run_config(parse(["prune", *others, *given], said.append)) == run_config(parse(expected))
    used = f"the argument {new}" if new.isupper() else new
    assert said == [f"old spellings: {old} is now {used}"]


def test_all_old_spellings_are_tried():
    assert set(VALUES) == set(RENAMED) and set(RENAMED.values()) < set(OPTION.values())


def test_old_spellings_on_the_command_line(opt_folder, tmp_path, data, capsys):
    args = ["--model", str(opt_folder), "--out", str(tmp_path / "out"), "--calibration.data", data]
    args += ["--prune.method", "wanda", "--prune.sparsity", "0.5", "--calibration.seq-len", "16"]
    assert main(["prune", *args, "--quiet"]) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("icp-jax: old spellings: --model is now the argument MODEL, --out is")
    assert "--prune.sparsity is now --sparsity" in said
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_error_is_one_line_with_old_spellings_too(capsys):
    assert main(["prune", "--model", "./nowhere", "--out", "o", "--prune.sparsity", "0.5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("icp-jax: no such folder")


# ---------------------------------------------------------------- completions


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completions_are_installed_in_the_home_folder(tmp_path, monkeypatch, capsys, shell):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["--install-completion", shell])
    path = tmp_path / SHELLS[shell]
    assert not stop.value.code
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"completions for {shell} installed in {path}: ") and "new shell" in line
    assert "icp-jax" in path.read_text() and "--sparsity" in path.read_text()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_completions_that_need_a_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--install-completion", "tcsh"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "icp-jax: tcsh completion needs shtab: pip install shtab"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [[], ["fish"], ["bash", "zsh"]])
def test_completions_need_a_known_shell(tmp_path, monkeypatch, capsys, given):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", *given]) == 2
    assert "bash, zsh, tcsh" in capsys.readouterr().err and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- a run


def test_the_last_lines_of_a_run(opt_folder, tmp_path, data, capsys):
    status, out = pruned(opt_folder, tmp_path, data)
    assert status == 0
    *_, sparsity, time, memory, remedy, output, report, after = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"sparsity     0\.5\d*", sparsity)
    assert re.fullmatch(r"time         \d+\.\d s", time)
    assert re.fullmatch(r"peak memory  \d+ MiB(?:, \d+ MiB on the device)?", memory)
    assert remedy == "remedy       none"
    assert output == f"output       {out}"
    assert report == f"report       {out}/report.html"
    assert after == f"next         icp-jax eval {out} --data wikitext2"


def test_quiet_shows_no_progress(opt_folder, tmp_path, data, capsys):
    assert pruned(opt_folder, tmp_path / "a", data)[0] == 2  # no such folder
    assert "create it" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    assert pruned(opt_folder, tmp_path, data)[0] == 0
    loud = capsys.readouterr()
    assert pruned(opt_folder, tmp_path / "b", data, "--quiet")[0] == 0
    quiet = capsys.readouterr()
    assert "block 0 prune" in loud.err.splitlines()
    assert "prune" not in quiet.err and len(quiet.err) < len(loud.err)
    assert "sparsity" in quiet.out


# ---------------------------------------------------------------- colours


def evaluated(opt_folder, data, stderr, **environment):
    """`icp-jax eval` with its standard error somewhere."""
    args = ["eval", str(opt_folder), "--data", data, "--seq-len", "16"]
    removed = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    return subprocess.Popen(
        [sys.executable, "-m", "icp_jax.cli", *args],
        stdout=subprocess.DEVNULL, stderr=stderr, env=kept | {"TERM": "xterm"} | environment,
    )  # fmt: skip


def in_a_terminal(opt_folder, data, **environment):
    """All that is written to a terminal."""
    ours, theirs = pty.openpty()
    run = evaluated(opt_folder, data, theirs, **environment)
    os.close(theirs)
    found = []
    while True:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        found.append(chunk)
    os.close(ours)
    assert run.wait() == 0
    return b"".join(found)


def test_no_escape_codes_in_a_pipe(opt_folder, data):
    run = evaluated(opt_folder, data, subprocess.PIPE)
    said = run.communicate()[1]
    assert run.returncode == 0 and b"evaluate" in said and b"\x1b" not in said


def test_no_colour_in_a_terminal_that_asks_for_none(opt_folder, data):
    assert COLOUR.search(in_a_terminal(opt_folder, data))
    assert not COLOUR.search(in_a_terminal(opt_folder, data, NO_COLOR="1"))
