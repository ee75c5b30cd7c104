"""`icp-jax generate`: what is printed, chats, two models side by side, and bad input."""

import io
import json
import os
import pty
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import write_llama, write_opt
from vision import small_sam

import icp_jax
from icp_jax.cli import main
from icp_jax.data.tokenizer import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'odd' %}{{ raise_exception('no such role') }}"
    "{% endif %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def with_template(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random OPT with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "opt"
    return with_template(write_opt(folder, num_hidden_layers=1, max_position_embeddings=64))


@pytest.fixture
def stdin(monkeypatch):
    """Sets what is piped into the command."""

    def piped(content: bytes):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    piped(b"")
    return piped


def expected(folder, ids, new=8, **settings):
    """The text that the library's own tokens give."""
    model, tokenizer = icp_jax.load(folder), load_tokenizer(folder)
    out = icp_jax.generate(model, [ids], max_new_tokens=new, eos=2, **settings)[0]
    out = out[: np.argmax(out == 2)] if 2 in out else out
    text = tokenizer.decode([*ids, *out], skip_special_tokens=True)
    return text[len(tokenizer.decode(ids, skip_special_tokens=True)) :]


def test_the_text_is_printed_and_the_speed_reported(model, capsys):
    assert main(["generate", str(model), "Return the", "--tokens", "8"]) == 0
    out, err = capsys.readouterr()
    ids = load_tokenizer(model)("Return the")["input_ids"]
    assert out == expected(model, ids) + "\n"
    assert err.startswith("8 tokens, ") and err.endswith(" tokens/s\n")


def test_quiet_prints_nothing_else(model, capsys):
    assert main(["generate", str(model), "Return the", "--tokens", "2", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_draws_are_those_of_the_library(model, capsys):
    args = ["--tokens", "8", "--temperature", "0.9", "--top-p", "0.8", "--seed", "3"]
    assert main(["generate", str(model), "Return the", *args]) == 0
    ids = load_tokenizer(model)("Return the")["input_ids"]
    settings = {"key": jax.random.key(3), "temperature": 0.9, "top_p": 0.8}
    assert capsys.readouterr().out == expected(model, ids, **settings) + "\n"


def test_a_prompt_from_a_pipe_and_none_at_all(model, capsys, stdin):
    stdin(b"Return the\n")
    assert main(["generate", str(model), "--tokens", "4", "--json"]) == 0
    piped = json.loads(capsys.readouterr().out)
    assert piped["prompt"] == "Return the"
    stdin(b"")
    assert main(["generate", str(model), "--tokens", "4", "--json"]) == 0
    (bare,) = json.loads(capsys.readouterr().out)["results"]
    assert bare["prompt_tokens"] == 1 and len(bare["tokens"]) == 4
    assert bare["text"] == expected(model, [2], new=4)


def test_a_chat_is_formatted_by_the_template(model, capsys):
    assert main(["generate", str(model), "Hello", "--chat", "--tokens", "8"]) == 0
    tokenizer = load_tokenizer(model)
    ids = tokenizer("<user>Hello\n<assistant>", add_special_tokens=False)["input_ids"]
    assert capsys.readouterr().out == expected(model, ids) + "\n"


def test_two_models_one_after_the_other_in_a_pipe(model, opt_folder, capsys):
    args = ["generate", str(model), "Return", "--compare", str(opt_folder), "--tokens", "4"]
    assert main(args) == 0
    out, err = capsys.readouterr()
    ids = load_tokenizer(model)("Return")["input_ids"]
    first, second = (expected(folder, ids, new=4) for folder in (model, opt_folder))
    assert out == f"{model}:\n{first}\n{opt_folder}:\n{second}\n"
    assert [line.split(": ")[0] for line in err.splitlines()] == [str(model), str(opt_folder)]
    assert main([*args, "--json", "--quiet"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [r["model"] for r in results] == [str(model), str(opt_folder)]
    assert [r["text"] for r in results] == [first, second]


@pytest.mark.parametrize("width, beside", [(120, True), (60, False)])
def test_two_models_on_a_terminal(model, width, beside):
    ours, theirs = pty.openpty()
    args = ["generate", str(model), "Return", "--compare", str(model), "--tokens", "3"]
    env = {**os.environ, "COLUMNS": str(width), "TERM": "xterm"}
    code = [sys.executable, "-m", "icp_jax.cli", *args]
    done = subprocess.run(code, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=env)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
    except OSError:  # the terminal is closed
        pass
    assert done.returncode == 0, done.stderr
    assert ("┃" in shown.decode()) == beside


def test_text_stops_at_the_end_token(tmp_path, model, capsys):
    ids = load_tokenizer(model)("Return the")["input_ids"]
    out = icp_jax.generate(icp_jax.load(model), [ids], max_new_tokens=8)[0]
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    end = int(out[2])
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, end]}))
    assert main(["generate", str(copy), "Return the", "--json", "--tokens", "8"]) == 0
    got = capsys.readouterr()
    (result,) = json.loads(got.out)["results"]
    assert result["tokens"] == out[: list(out).index(end)].tolist() and result["stopped"]
    assert "ended by the model" in got.err


def refused(args, capsys):
    assert main(["generate", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_bad_input_is_one_line(model, opt_folder, tmp_path, capsys, stdin):
    for args, said in (
        (["a " * 70], "exceed the model's context of 64"),
        (["a", "--tokens", "64"], "ask for at most"),
        (["a", "--tokens", "0"], "tokens must be at least 1"),
        (["a", "--temperature", "-1"], "temperature must be at least 0"),
        (["a", "--top-p", "0"], "top_p must be in (0, 1]"),
        (["a", "--top-p", "1.1"], "top_p must be in (0, 1]"),
        (["a", "--seed", "-1"], "seed must be at least 0"),
        (["--chat"], "a chat needs a message"),
    ):
        assert said in refused([model, *args], capsys), args
    assert "has no chat template" in refused([opt_folder, "a", "--chat"], capsys)
    write_llama(tmp_path / "bare")
    assert "copy the tokenizer's files" in refused([tmp_path / "bare", "a"], capsys)
    small_sam.write_sam(tmp_path / "sam")
    assert "does not read text" in refused([tmp_path / "sam", "a"], capsys)
    stdin(b"\xff\xfe\xff")
    assert "is not UTF-8" in refused([model], capsys)
