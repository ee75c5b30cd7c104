"""The machine that the command line meets: its platforms, locale, streams and system."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import write_opt

from icp_jax.backend import compile_cache
from icp_jax.cli import machine, main, standard
from icp_jax.errors import InputError

PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # as in a bare container
LOCALES = {
    "plain": PLAIN,
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict": {"PYTHONIOENCODING": "ascii:strict"},
    "capitals": {"PYTHONIOENCODING": "UTF-8"},
    "latin": {"PYTHONIOENCODING": "latin-1"},
}
PRUNE = ["--seq-len", "16", "--samples", "2", "--method", "wanda"]


def start(shell_end, *args, cwd=None, **environment):
    """The command line in a process of its own, as a shell starts it."""
    line = f'"$@" {shell_end}'
    return subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, "-m", "icp_jax.cli", *map(str, args)],
        cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False,
        encoding="utf-8", errors="surrogateescape",
    )  # fmt: skip


def to_nobody(*args, cwd, stderr):
    """The same, its standard output a pipe that nobody reads."""
    line = [sys.executable, "-m", "icp_jax.cli", *map(str, args)]
    done = subprocess.Popen(line, cwd=cwd, stdout=subprocess.PIPE, stderr=stderr)
    done.stdout.close()
    return done


def one_line(done, *parts, status=2):
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("icp-jax: ") and done.stderr.count("\n") == 1, done.stderr
    assert len(done.stderr) < 300 and all(part in done.stderr for part in parts), done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an umlaut, a model and calibration data in it."""
    folder = tmp_path_factory.mktemp("machine") / "mäßig"
    folder.mkdir()
    write_opt(folder / "model")
    np.save(folder / "x.npy", np.arange(400) % 90)
    return folder


COMMANDS = {
    "eval": ["eval", "model", "--data", "x.npy", "--seq-len", 16],
    "prune": ["prune", "model", "o", "--data", "x.npy", *PRUNE],
    "dry run": ["prune", "model", "--dry-run", *PRUNE],
    "plan": ["plan", "model"],
    "convert": ["convert", "model", "o"],
    "demo": ["demo", "--out", "o"],
    "segment": ["segment", "model", "x.png", "--out", "o", "--point", "1,1"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_platform_that_is_not_there(place, command):
    done = start("", *COMMANDS[command], cwd=place, JAX_PLATFORMS="bogus")
    one_line(done, "JAX_PLATFORMS=bogus", "no such platform here", "cpu")
    assert not done.stdout and not list(place.glob("*o"))


@pytest.mark.parametrize(
    "name,value",
    [
        ("JAX_PLATFORMS", "rocm"),
        ("JAX_PLATFORMS", "cpu,bogus"),
        ("JAX_PLATFORMS", "b" * 999),
        ("JAX_PLATFORM_NAME", "bogus"),
    ],
)
def test_a_platform_that_is_not_there(place, name, value):
    done = start("", *COMMANDS["convert"], cwd=place, **{"JAX_PLATFORMS": "", name: value})
    one_line(done, f"{name}={value[:20]}", "no such platform here", "cpu")


def test_what_starts_and_fails_says_why(monkeypatch):
    import jax

    def fails():
        raise RuntimeError("Unable to initialize backend 'cuda': the driver is too old\nat x.cc:1")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", fails)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr("logging.disable", lambda level: None)
    with pytest.raises(
        InputError, match="JAX_PLATFORMS=cuda.*the driver is too old.; set it to cpu"
    ):
        machine.platforms()


def test_a_platform_that_is_there_and_what_asks_for_none(place):
    done = start("", "verify", "model", cwd=place, JAX_PLATFORMS="bogus")
    assert done.returncode == 0 and "sparsity" in done.stdout and not done.stderr
    done = start("", *COMMANDS["dry run"], cwd=place, JAX_PLATFORMS="cpu")
    assert done.returncode == 0 and not done.stderr


def test_a_variable_that_jax_refuses(place):
    one_line(start("", "verify", "model", cwd=place, JAX_ENABLE_X64="maybe"), "JAX_ENABLE_X64")


@pytest.mark.parametrize("locale", LOCALES)
def test_help_and_errors_in_any_locale(locale):
    for args in (["--help"], ["prune", "--help"]):
        done = start("", *args, **LOCALES[locale])
        assert done.returncode == 0 and "--help" in done.stdout and not done.stderr
    done = start("", "prune", "model", "out", "--sparsity", "70%", **LOCALES[locale])
    one_line(done, "icp-jax: Error parsing --sparsity: could not convert", "'70%'\n")
    one_line(start("", "verify", **LOCALES[locale]), "icp-jax: DIR is missing: see icp-jax verify")


def test_what_an_encoding_lacks_is_escaped(place):
    shutil.copytree(place / "model", place / "β×ü")
    done = start("", "verify", "β×ü", cwd=place, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and "\\u03b2\udcd7\udcfc" in done.stdout
    done = start("", "verify", "nicht-β×ü", cwd=place, PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "icp-jax: nicht-\\u03b2\\xd7\\xfc is" in done.stderr


def test_an_umlaut_in_the_path_in_a_plain_locale(place):
    out = place / "über"
    done = start(
        "", "prune", place / "model", out, "--data",
        place / "x.npy", *PRUNE, **PLAIN,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").is_file() and "\\xfcber\n" in done.stdout
    done = start("", "verify", out, "--json", **PLAIN)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_no_utf8(place):
    one_line(start("", "verify", os.fsdecode(b"\xff")), "not UTF-8")


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["prune", "--help"]])
@pytest.mark.parametrize(
    "end,reason", [(">/dev/full", errno.ENOSPC), (">&-", errno.EBADF), (">&- 0<&-", errno.EBADF)]
)
def test_standard_output_that_takes_nothing(args, end, reason):
    one_line(start(end, *args), f"standard output cannot be written: {os.strerror(reason)}")


@pytest.mark.parametrize("json", [[], ["--json"]])
def test_a_result_that_cannot_be_printed_is_kept(place, tmp_path, json):
    args = ["prune", "model", tmp_path / "o", *COMMANDS["prune"][3:], *json]
    done = start(">/dev/full", *args, cwd=place)
    assert done.returncode == 2 and (tmp_path / "o" / "model.safetensors").is_file()
    last = done.stderr.splitlines()[-1]
    assert last.startswith("icp-jax: standard output cannot be written: No space left")
    assert last.endswith(f"the result is in {tmp_path / 'o'}")


@pytest.mark.parametrize("args", [["verify", "model"], ["verify", "model", "--json"], ["--help"]])
def test_a_reader_that_has_gone_ends_it_quietly(place, args):
    done = to_nobody(*args, cwd=place, stderr=subprocess.PIPE)
    assert done.communicate(timeout=60)[1] == b"" and done.returncode == 1


def test_a_reader_of_both_that_has_gone_loses_no_run(place, tmp_path):
    """`2>&1 | head -1`"""
    args = ["prune", "model", tmp_path / "o", *COMMANDS["prune"][3:]]
    assert to_nobody(*args, cwd=place, stderr=subprocess.STDOUT).wait(timeout=120) == 1
    assert start("", "verify", tmp_path / "o", "--source", "model", cwd=place).returncode == 0


@pytest.mark.parametrize("end", ["2>/dev/full", "2>&- 0<&-"])
def test_standard_error_that_takes_nothing_ends_no_run(place, tmp_path, end):
    assert start(end, "bogus").returncode == 2
    args = ["prune", "model", tmp_path / "o", *COMMANDS["prune"][3:], "--json"]
    done = start(end, *args, cwd=place)
    assert done.returncode == 0 and done.stdout.startswith('{"out": ')
    checked = start("", "verify", tmp_path / "o", "--source", "model", cwd=place)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("home", ["relative", None])
def test_a_user_without_a_home_has_no_cache(tmp_path, monkeypatch, home):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    if home is None:
        monkeypatch.setattr("pathlib.Path.home", nowhere)
    else:
        monkeypatch.setenv("HOME", home)
    compile_cache.use()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ and not list(tmp_path.iterdir())


def test_a_current_folder_that_is_gone(place, tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    args = [place / "model", "o", "--data", place / "x.npy", *PRUNE]
    assert main(["prune", *map(str, args)]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("icp-jax: the current folder no longer exists")
    )


def test_other_errors_of_files_pass(tmp_path):
    with pytest.raises(FileNotFoundError), standard.written(InputError):
        open(tmp_path / "not there")  # noqa: SIM115


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_get_one_line(monkeypatch, capsys, system):
    monkeypatch.setattr(sys, "platform", system)
    assert main(["--version"]) == 2
    seen = capsys.readouterr()
    assert (
        not seen.out
        and seen.err.count("\n") == 1
        and f"Linux only, and this is {system}" in seen.err
    )
