"""Reports of real runs: written with the output, never in the way of a run or of other commands."""

import json
import resource
from pathlib import Path

import pytest
from conftest import write_opt
from example_records import Page
from runs import ARGUMENTS, error, helpful, same

import icp_jax
from converters.files import other_files
from icp_jax.cli import main
from icp_jax.report import write

LIMIT = 6_000  # bytes a file: more than a record, less than a report
SMALL = ["--method", "wanda", "--sparsity", "0.5", "--data", "text.txt", "--samples", "2"]
SMALL += ["--quiet"]


@pytest.fixture
def small(tmp_path, bundled, monkeypatch):
    """A folder with a model of one block and a text."""
    write_opt(tmp_path / "model", num_hidden_layers=1)
    (tmp_path / "text.txt").write_text((bundled / "calibration.txt").read_text()[:3000])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prune(*more):
    return main(["prune", "model", "out", *SMALL, *more])


def test_a_run_writes_its_report_and_says_where(small, capsys):
    assert prune() == 0
    assert "report       out/report.html" in capsys.readouterr().out.replace(f"{small}/", "")
    page = Page((small / "out" / "report.html").read_text())
    assert "model pruned by Wanda" in page.text and "5" in page.text
    assert sorted(p.name for p in small.iterdir()) == ["model", "out", "text.txt"]


def test_the_report_is_made_anew_from_the_record(small, capsys):
    assert prune() == 0
    path = small / "out" / "report.html"
    first = path.read_text()
    path.unlink()
    capsys.readouterr()
    assert main(["report", "out"]) == 0
    assert capsys.readouterr().out.strip() == "out/report.html"
    assert path.read_text() == first
    assert main(["report", "out", "out", "--out", "both.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": "both.html"}
    assert "2 runs compared" in (small / "both.html").read_text()


@pytest.mark.parametrize("args", [[], ["model"], ["nowhere"], ["model", "--out", "text.txt"]])
def test_what_cannot_be_reported_is_one_line(small, capsys, args):
    assert main(["report", *args]) == 2
    assert helpful(error(capsys), args)
    assert not list(small.rglob("*.html"))


def test_a_run_whose_report_does_not_fit_on_the_disk(undisturbed, place, monkeypatch, capsys):
    """The system refuses files above a size while the report is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = write.attempt

    def attempt(*given):
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
        try:
            real(*given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(write, "attempt", attempt)
    assert main([*ARGUMENTS, "--quiet"]) == 0
    said = error(capsys)
    assert "no report was written (File too large); to make it, run icp-jax report" in said
    out = place / "work" / "out"
    assert not [p.name for p in out.iterdir() if "report" in p.name]
    assert main(["report", str(out)]) == 0  # as the line says
    same(place, undisturbed)


def test_other_commands_take_no_notice_of_the_report(small):
    assert prune() == 0
    assert icp_jax.verify("out")["missing"] == icp_jax.verify("out")["unexpected"] == []
    assert {"report.html", "icp_run.json"}.isdisjoint(p.name for p in other_files(Path("out")))
    assert main(["convert", "out", "tree"]) == 0 and not list(Path("tree").rglob("report.html"))
    (small / "model" / "report.html").write_text("the user's own")  # of a model that is no run's
    assert Path("model/report.html") in other_files(Path("model"))


def test_a_page_of_the_model_makes_way_for_the_report(small):
    (small / "model" / "report.html").write_text("the user's own")
    assert prune() == 0
    assert "Pruning run" in (small / "out" / "report.html").read_text()


def test_texts_before_and_after(small, capsys):
    assert prune("--report-text", "The value <b>") == 0
    texts = json.loads((small / "out" / "icp_run.json").read_text())["texts"]
    assert texts["prompt"] == "The value <b>" and texts["before"] and texts["after"]
    page = Page((small / "out" / "report.html").read_text())
    assert "The value <b> …" in page.text
    assert " ".join(texts["after"].split()) in page.text


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_written(small, capsys):
    assert prune("--report-text", "word " * 100) == 2
    assert "shorten the prompt" in error(capsys)
    assert sorted(p.name for p in small.iterdir()) == ["model", "text.txt"]


def test_texts_that_cannot_be_made_do_not_stop_a_run(small, monkeypatch, capsys):
    def fails(model, prompt):
        raise MemoryError("no room")

    monkeypatch.setattr("icp_jax.runs.telling.continued", fails)
    assert prune("--report-text", "The") == 0
    assert "the report has no texts: no room" in error(capsys)


def test_a_planned_run_shows_its_plan(small):
    assert prune("--host-memory", "8GiB") == 0
    record = json.loads((small / "out" / "icp_run.json").read_text())
    assert record["plan"]["host"] == max(phase["host"] for phase in record["plan"]["phases"])
    assert "Memory beside the plan" in (small / "out" / "report.html").read_text()
