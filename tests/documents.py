"""The code blocks of the README and the docs, and what stands in for what their commands name."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import gguf_oracle
from conftest import LLAMA, write_opt
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser
from task_files import write_sets
from vision import small_sam

from icp_jax.cli import main
from icp_jax.cli.parse import parse
from icp_jax.data import hub, named
from icp_jax.data.corpus import Corpus
from icp_jax.demo import BUNDLED
from icp_jax.evaluation import tasks

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "_generated" / "results.md"
BUILT = ROOT / "docs" / "_build"
DOCS = [path for path in sorted((ROOT / "docs").rglob("*.md")) if BUILT not in path.parents]
PAGES = [str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *DOCS)]
FENCE = re.compile(r"^[ ]*```(.*)$", re.MULTILINE)
PYTHON = ("python", "{code-cell} ipython3", "{code-cell}")  # the last two: of MyST's notebooks
SHELL = "sh"
SHOWN = {"text", "bibtex"}  # what is no code
SEVERAL = {"--devices", "--hosts.coordinator"}  # more machines than a test has: parsed, not run


def examples(page):
    """Sybil's examples of a page, in order; they share one namespace."""
    parsers = [CodeBlockParser(language, PythonEvaluator()) for language in PYTHON]
    parsers.append(CodeBlockParser(SHELL, run_commands))
    return list(Sybil(parsers, path=str(ROOT)).parse(ROOT / page).examples())


def languages(page):
    """The language of every code block of a page, MyST's directives that hold no code left out."""
    told = FENCE.findall((ROOT / page).read_text())[::2]
    return {x for x in told if not x.startswith("{") or x.startswith("{code")}


def commands(text):
    """The words of every command of a shell block. Comments are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run_commands(example):
    """Run a shell block in the current folder: `icp-jax` in this process, `make` as a dry run."""
    for words in commands(example.parsed):
        if words[0] == "srun":  # starts the command after it on every host
            del words[0]
        program, *rest = words
        if program == "icp-jax" and SEVERAL & set(rest):
            parse(rest)
        elif program == "icp-jax" and "--config" in rest:  # a config's windows are too long here
            short = ["--seq-len", str(SMALL["max_position_embeddings"])]
            assert main([*rest, *short]) == 0, shlex.join(words)
        elif program == "icp-jax" and rest[0] == "sweep":  # the first point
            few = ["--trials", "1", "--limit", "4", "--engine", "streamed"]
            assert main([*rest, *few]) == 0, shlex.join(words)
        elif program == "icp-jax":
            assert main(rest) == 0, shlex.join(words)
        elif program == "make":
            subprocess.run(["make", "-n", *rest], cwd=ROOT, check=True, capture_output=True)
        elif words[:2] == ["pip", "install"]:
            installable(rest[1])
        elif program == "python" and rest[0] == "-m":
            assert importlib.util.find_spec(rest[1]), rest[1]
        elif program == "python":
            help = [sys.executable, str(ROOT / rest[0]), "--help"]
            subprocess.run(help, check=True, capture_output=True)
        else:
            raise AssertionError(f"no test can run {shlex.join(words)}")


def installable(what):
    """`.` or `icp-jax`, with extras that pyproject.toml has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, extras = re.fullmatch(r"([^\[]+)(?:\[(.*)\])?", what).groups()
    assert name in (".", project["name"]), what
    for extra in filter(None, (extras or "").split(",")):
        assert extra in project["optional-dependencies"], what


def stand_ins(folder, monkeypatch):
    """Write what the pages name into a folder, small and random. The named data sets are a text."""
    text = (BUNDLED / "heldout.txt").read_text()[:40_000]
    monkeypatch.setattr(hub, "ask", lambda *_: None)
    monkeypatch.setattr(named, "_load", lambda name, evaluation: Corpus(name, [text]))
    for name in ("facebook/opt-125m", "facebook/opt-6.7b"):
        write_opt(folder / name, **SMALL)
    write_ggufs(folder)
    small_sam.write_sam(folder / "facebook" / "sam-vit-base")
    small_sam.write_images(folder / "photos", 128)
    small_sam.write_coco(folder / "coco")
    sets, from_folder = write_sets(folder / "sets"), tasks._tasks
    monkeypatch.setattr(tasks, "_tasks", lambda index, names, _: from_folder(index, names, sets))
    shutil.copy(folder / "photos" / "0.png", folder / "photo.jpg")


def write_ggufs(folder):
    """The GGUF files of the pages: a Llama in one file and in parts, with the bundled tokenizer."""
    record = json.loads((BUNDLED / "tokenizer.json").read_text())["model"]
    tokens = sorted(record["vocab"], key=record["vocab"].get)
    merges = [" ".join(pair) for pair in record["merges"]]
    config = {**LLAMA, "vocab_size": len(tokens), "tie_word_embeddings": True}
    state = gguf_oracle.random_state(config)
    tokenizer = partial(gguf_oracle.add_tokenizer, tokens=tokens, merges=merges)
    for name, parts in (("SmolLM2-135M-Instruct.Q4_1", {}), ("model", {"split_max_tensors": 12})):
        gguf_oracle.write_gguf(
            folder / f"{name}.gguf", config, state, kind="F16", tokenizer=tokenizer, **parts
        )


SMALL = {
    "num_hidden_layers": 6,
    "hidden_size": 128,
    "word_embed_proj_dim": 128,
    "ffn_dim": 512,
    "max_position_embeddings": 64,
}
