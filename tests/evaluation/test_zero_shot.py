"""Zero-shot tasks: the figures of lm-eval's own torch backend, and what the commands print."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import write_opt
from task_files import write_sets

import icp_jax
from icp_jax.cli import main
from icp_jax.data.tokenizer import load_tokenizer
from icp_jax.demo import BUNDLED
from icp_jax.errors import InputError
from icp_jax.evaluation import tasks

lm_eval = pytest.importorskip("lm_eval", reason="no lm-eval: pip install 'icp-jax[zeroshot]'")
ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
STORIES = SHARED / "models" / "stories260K"
SEVEN = ["boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"]
# A thread pool of datasets forks no process, but a library that it loads warns of one.
pytestmark = pytest.mark.filterwarnings("default")


def ask(*given):
    return SimpleNamespace(args=given)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("tasks") / "sets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random OPT that reads 64 tokens at once. It is as small as can be."""
    place = tmp_path_factory.mktemp("models") / "opt"
    return write_opt(place, dtype=np.float32, max_position_embeddings=64)


@pytest.fixture(scope="module")
def asked(folder):
    from icp_jax.evaluation.zero_shot import IcpJaxLM

    return IcpJaxLM(folder)


def by_both(model, names, place, limit, folder):
    """(our results, those of lm-eval's `hf` backend) on the same questions."""
    pytest.importorskip("torch")
    pytest.importorskip("accelerate", reason="no accelerate, which lm-eval's torch backend needs")
    pytest.importorskip("peft", reason="no peft, which lm-eval's torch backend needs")
    from lm_eval.models.huggingface import HFLM

    from icp_jax.evaluation.zero_shot import IcpJaxLM

    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8)
    found = []
    with tasks._quiet():
        for one in (IcpJaxLM(model), theirs):
            built = tasks._tasks(tasks._manager(), names, place)
            for task in built.values():
                task.set_config(key="num_fewshot", value=0)
                task.set_fewshot_seed(seed=0)
            found.append(lm_eval.evaluate(one, {"tasks": built}, limit, log_samples=True))
    return found


def same(ours, theirs, names):
    """Whether all metrics are equal, and log-probabilities to rounding."""
    for name in names:
        assert ours["results"][name] == theirs["results"][name]
        for mine, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            assert mine["arguments"] == other["arguments"]
            pairs = zip(mine["filtered_resps"], other["filtered_resps"], strict=True)
            for (score, greedy), (wanted, first) in pairs:
                assert abs(score - wanted) < 1e-4 * abs(wanted) and greedy == first


@pytest.mark.needs_torch
def test_the_figures_are_those_of_the_torch_backend(folder, sets):
    same(*by_both(folder, SEVEN, sets, None, folder), SEVEN)


@pytest.mark.needs_torch
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
@pytest.mark.parametrize(
    "model", [SHARED / "models" / "stories260K", BUNDLED], ids=lambda p: p.name
)
def test_two_hundred_questions_of_each_task(model, tmp_path):
    copy = tmp_path / "model"
    copy.mkdir()
    for path in model.iterdir():
        if path.suffix in (".json", ".safetensors"):
            (copy / path.name).write_bytes(path.read_bytes())
    load_tokenizer(model).save_pretrained(copy)
    same(*by_both(model, SEVEN, SHARED / "data" / "tasks", 200, copy), SEVEN)


def test_a_text_of_any_length_by_rolling_windows(asked, folder):
    model, tokenizer = icp_jax.load(folder), load_tokenizer(folder)
    text = (BUNDLED / "heldout.txt").read_text()[:400]
    ids = tokenizer(text, verbose=False)["input_ids"]
    assert len(ids) > 64
    whole, expected = [asked.prefix_token_id, *ids], 0.0
    for start in range(0, len(ids), 64):
        end = min(start + 64, len(ids))
        read = whole[max(0, end - 64) : end]
        logits = model.logits(np.asarray([read]))[0].astype("float32")
        scores = np.asarray(jax.nn.log_softmax(logits))[start - end :]
        expected += scores[np.arange(end - start), ids[start:end]].sum()
    (found,) = asked.loglikelihood_rolling([ask(text)])
    assert found == pytest.approx(expected, rel=1e-5)


def test_texts_end_where_they_are_told_to(asked, folder):
    model, tokenizer = icp_jax.load(folder), load_tokenizer(folder)
    prompts = ["Return the", "Raised when an object is"]
    texts = asked.generate_until([ask(p, {"until": [], "max_gen_toks": 12}) for p in prompts])
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tokenizer(prompt, verbose=False)["input_ids"]
        (new,) = icp_jax.generate(model, [ids], max_new_tokens=12, eos=tokenizer.eos_token_id)
        assert text == tokenizer.decode(new, skip_special_tokens=True)
    stop = texts[0][5:8]
    requests = [ask(p, {"until": [stop], "max_gen_toks": 12}) for p in prompts]
    requests.append(ask(prompts[0], {"until": stop, "max_gen_toks": 4}))
    found = asked.generate_until(requests)
    assert found[0] == texts[0].split(stop)[0] and found[1] == texts[1].split(stop)[0]
    assert len(tokenizer(found[2])["input_ids"]) <= 5
    with pytest.raises(InputError, match="64 new tokens leave no room"):
        asked.generate_until([ask("a", {"max_gen_toks": 64})])


def test_a_text_without_context_follows_the_token_that_starts_one(asked):
    empty, told = asked.loglikelihood([ask("", "Return"), ask("</s>", "Return")])
    assert empty == told


# ---------------------------------------------------------------- the commands


def test_the_model_is_registered_beside_lm_evals_own():
    from lm_eval.api.registry import get_model, model_registry

    from icp_jax.evaluation.zero_shot import IcpJaxLM

    assert get_model("icp_jax") is IcpJaxLM and "hf" in model_registry


def test_the_table(folder, sets, capsys):
    args = ["eval", str(folder), "--tasks", "boolq,arc_easy", "--task-data", str(sets)]
    assert main([*args, "--limit", "4", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    boolq, arc = record["tasks"]["boolq"], record["tasks"]["arc_easy"]
    assert boolq["questions"] == arc["questions"] == 4 and boolq["split"] == "validation"
    assert set(boolq["metrics"]) == {"acc"} and set(arc["metrics"]) == {"acc", "acc_norm"}
    scores = [one["metrics"]["acc"] for one in (boolq, arc)]
    errors = [one["errors"]["acc"] for one in (boolq, arc)]
    assert record["mean"] == pytest.approx(np.mean(scores))
    assert record["standard_error"] == pytest.approx(np.hypot(*errors) / 2)
    assert main([*args, "--limit", "4", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert f"{boolq['metrics']['acc']:.4f} +- {boolq['errors']['acc']:.4f}" in out
    assert f"{record['mean']:.4f} +- {record['standard_error']:.4f}" in out and err == ""


TASKS = ["--tasks", "boolq"]
BAD = [
    ([], "give either --data, for perplexity or IoU, or --tasks"),
    ([*TASKS, "--data", "x"], "give either --data"),
    (
        ["--data", "x", "--task-data", "y"],
        "--task-data is for --tasks, not for --data: leave it out",
    ),
    ([*TASKS, "--seq-len", "4"], "--seq-len is not for --tasks: leave it out"),
    ([*TASKS, "--limit", "0"], "limit must be at least 1, got 0"),
    (["--tasks", ","], "no task given: name tasks of lm-eval"),
    (["--tasks", "boolk", "--task-data", "SETS"], "no task 'boolk'; did you mean boolq?"),
    (["--tasks", "mmlu", "--task-data", "SETS"], "mmlu is not a single task with a data set"),
    (["--tasks", "copa", "--task-data", "SETS"], "no set for the task copa: put its splits into"),
    ([*TASKS, "--task-data", "ODD"], r"does not serve \(UndefinedError: 'passage' is undefined\)"),
    (["--tasks", "rte", "--task-data", "ODD"], "has no split validation, only train"),
]


@pytest.mark.parametrize("args, said", BAD)
def test_what_is_wrong_is_one_line(folder, sets, tmp_path, args, said, capsys):
    (tmp_path / "boolq.jsonl").write_text('{"question": "a", "label": 1}\n')
    (tmp_path / "rte").mkdir()
    (tmp_path / "rte" / "train.jsonl").write_text('{"sentence1": "a", "label": 1}\n')
    places = {"SETS": str(sets), "ODD": str(tmp_path)}
    status = main(["eval", str(folder), *(places.get(arg, arg) for arg in args)])
    out, err = capsys.readouterr()
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert re.search(said, err), err


OWN = """\
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{passage}}"
doc_to_target: label
doc_to_choice: ["no", "yes"]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.slow
def test_the_command_of_lm_eval_knows_the_model(folder, sets, tmp_path):
    (tmp_path / "own.yaml").write_text(OWN.replace("ROWS", str(sets / "boolq.jsonl")))
    args = ["--model", "icp_jax", "--model_args", f"pretrained={folder}", "--tasks", "own"]
    done = subprocess.run(
        [sys.executable, "-m", "icp_jax.lm_eval", *args, "--include_path", str(tmp_path)],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "|own  |" in done.stdout and "acc" in done.stdout


def test_without_the_extra(folder, monkeypatch, capsys):
    tasks._manager.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert main(["eval", str(folder), *TASKS]) == 2
    assert (
        "zero-shot tasks need lm-eval: pip install 'icp-jax[zeroshot]'" in capsys.readouterr().err
    )
