"""The pages, without a browser: well-formed, self-contained, whole, safe with any name."""

import dataclasses
import json
import re

import pytest
from example_records import CONFIG, Page, run_record, write_run, write_sweep

from icp_jax.errors import InputError
from icp_jax.report import folders, write
from icp_jax.report.scatter import front

HOSTILE = "</title><script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
GRID = [{"prune.alpha": a, "prune.beta": b} for a in (0.7, 1.0) for b in (0.0, 0.1, 0.2)]


def alone(text):
    """The page, if it needs nothing from outside and its pictures have descriptions."""
    page = Page(text)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "action", "poster", "data"):
            assert value.startswith(("data:", "#")), f"{tag} {name}={value}"
        assert not name.startswith("on"), f"{tag} has {name}"
    assert not re.search(r"@import|url\(|<(?:img|iframe|object|embed)\b", text)
    assert len(page.ids) == len(set(page.ids))
    assert page.pictures
    for picture in page.pictures:
        assert picture["role"] == "img" and len(picture["aria-label"]) > 20
    return page


def test_the_page_of_a_run_has_all_its_parts():
    plan = {"phases": [{"name": "dense", "device": 0, "host": 300 << 20}], "host": 1, "device": 1}
    texts = {"prompt": "Once", "before": "upon a time", "after": "a time"}
    page = alone(write.run_html(run_record(plan=plan, texts=texts, remedies=["block 1: damped"])))
    assert page.ids[::2] == ["blocks", "texts", "remedies", "command", "versions"]
    for said in (
        "opt-small pruned by ICP", "calibrated on 6 windows of 24 tokens", "45.0%",
        "Sparsity of each layer", "Growth of the error", "95th percentile", "Compensation",
        "Time by phase", "Memory beside the plan", "upon a time", "block 1: damped",
        "icp-jax prune models/opt-small out", "icp-jax 0.1.0", "2.95 of 6 MB",
    ):  # fmt: skip
        assert said in page.text, said
    assert len(page.pictures) == 5


def test_charts_show_the_figures_of_the_record():
    text = write.run_html(run_record())
    assert "layer fc2, block 2: 50.0%" in text and "layer q_proj, block 0: 40.0%" in text
    assert "95th percentile after block 1: 0.051" in text
    assert "block 2: 2.2 before, 2.1 after" in text
    assert text.count("block 0, prune: 0.25") == 1 and "block 0, compensate" in text


@pytest.mark.parametrize("blocks", [0, 1, 80])
def test_a_run_of_any_number_of_blocks(blocks):
    text = write.run_html(run_record(blocks))
    assert "nan" not in text.lower().replace("nanum", "")
    assert len(Page(text).pictures) == (0 if not blocks else 3 if blocks == 1 else 4)


def test_old_records_without_the_newer_fields():
    record = run_record()
    for block in record["blocks"]:
        del block["error_median"], block["error_p95"]
    for name in ("plan", "texts", "peak_device_mib"):
        del record[name]
    assert "median" not in alone(write.run_html(record)).text.split("Blocks")[1]


def test_what_is_not_finite_is_a_dash():
    record = run_record()
    record["blocks"][1].update(error=None, error_median=None)
    record["blocks"][2]["compensation"]["after"] = None
    assert "–" in alone(write.run_html(record)).text


def hostile():
    config = dataclasses.replace(CONFIG, model=f"models/{HOSTILE}", out=HOSTILE)
    record = run_record(config=config, remedies=[HOSTILE], device=HOSTILE)
    record["texts"] = {"prompt": HOSTILE, "before": HOSTILE, "after": HOSTILE}
    for block in record["blocks"]:
        block["layers"][0]["name"] = HOSTILE
        block["seconds"] = {HOSTILE: 1.0}
    return record


def safe(text):
    page = alone(text)
    assert text.count("<script") == 1 and "alert(1)" in page.text  # ours; as text
    assert "onerror" not in [name for _, name, _ in page.attributes]


def test_names_are_text_whatever_they_hold(tmp_path):
    safe(write.run_html(hostile()))
    runs = [write_run(tmp_path / name, hostile()) for name in ("a<script>b", "c&d")]
    safe(write.html([folders.read(run) for run in runs]))
    points = [{"prune.rearrange": HOSTILE, HOSTILE: k} for k in range(3)]
    safe(write.html([folders.read(write_sweep(tmp_path / "s<b>", points))]))


def test_runs_are_compared(tmp_path):
    other = dataclasses.replace(
        CONFIG, prune=dataclasses.replace(CONFIG.prune, method="wanda", alpha=None, beta=None)
    )
    runs = [write_run(tmp_path / "a", run_record()),
            write_run(tmp_path / "b", run_record(4, other, sparsity=0.5))]  # fmt: skip
    page = alone(write.html([folders.read(run) for run in runs]))
    assert "2 runs compared" in page.text and "opt-small pruned in 2 runs: a, b." in page.text
    assert "method alpha beta" in page.text and "seq len" not in page.text  # what differs
    assert page.ids[::2] == ["runs", "command", "versions"]
    assert page.pictures[0]["aria-label"].endswith("a 0.0289, b 0.0491")


def test_a_demo_is_a_comparison_with_perplexity(tmp_path):
    methods = [{"method": m, "perplexity": p} for m, p in (("wanda", 40.5), ("icp", 30.25))]
    for told in methods:
        prune = dataclasses.replace(CONFIG.prune, method=told["method"])
        record = run_record(config=dataclasses.replace(CONFIG, prune=prune))
        write_run(tmp_path / "demo" / told["method"], record)
    record = {"model": "opt-small", "methods": methods, "dense": {"perplexity": 20, "tokens": 99}}
    record |= {"prompt": "Once", "texts": {"dense": "upon", "icp": "a time"}}
    (tmp_path / "demo" / "demo.json").write_text(json.dumps(record))
    page = alone(write.html([folders.read(tmp_path / "demo")]))
    for said in ("opt-small pruned by 2 methods", "perplexity is 20 on 99", "30.25", "a time"):
        assert said in page.text


def test_two_settings_make_a_heat_map(tmp_path):
    page = alone(write.html([folders.read(write_sweep(tmp_path / "grid", GRID))]))
    assert "Perplexity over both settings" in page.text and "6 points of opt-small" in page.text
    assert "alpha 0.7, beta 0" in page.text  # the best
    command = "icp-jax prune models/opt-small OUT --sparsity 0.5 --prune.alpha 0.7"
    assert command in page.text


@pytest.mark.parametrize("more", [{}, {"compensate.lr": 1e-3}])
def test_other_settings_make_lines_and_a_front(tmp_path, more):
    points = [{"prune.sparsity": s, **{k: v * s for k, v in more.items()}} for s in (0.3, 0.5, 0.6)]
    page = alone(write.html([folders.read(write_sweep(tmp_path / "sweep", points))]))
    assert "Points over their settings" in page.text
    assert "Perplexity against sparsity" in page.text


def test_a_sweep_without_a_result(tmp_path):
    folder = write_sweep(tmp_path / "sweep", [{"prune.alpha": 0.1}], "infeasible")
    row = json.loads((folder / "points.jsonl").read_text())
    row = {k: row[k] for k in ("key", "state", "settings")}
    (folder / "points.jsonl").write_text(json.dumps(row) + '\n{"key": half')
    page = Page(write.html([folders.read(folder)]))
    assert "1 point of opt-small over alpha; 1 without a perplexity." in page.text
    assert "No point has a perplexity yet." in page.text


def test_the_front_has_no_point_that_another_beats():
    points = [(0.5, 10, "a"), (0.6, 9, "b"), (0.7, 30, "c"), (0.7, 20, "d"), (0.4, 9, "e")]
    assert [what for *_, what in front(points)] == ["b", "d"]


DAMAGE = {
    "no such folder": (lambda p: p.rmdir(), "is not a folder"),
    "empty": (lambda p: None, "has no icp_run.json"),
    "not json": (lambda p: (p / "icp_run.json").write_text("{"), "is damaged: restore it"),
    "another json": (lambda p: (p / "icp_run.json").write_text("[]"), "is not a record"),
    "no blocks": (lambda p: (p / "icp_run.json").write_text("{}"), "not the record of a run"),
    "half a record": (
        lambda p: (p / "icp_run.json").write_text('{"blocks": [{}], "config": {"prune": {}}}'),
        "is incomplete",
    ),
    "bytes": (lambda p: (p / "icp_run.json").write_bytes(b"\xff\xfe"), "is not UTF-8"),
    "no points": (lambda p: (p / "points.jsonl").write_text(""), "has no point yet"),
    "bad points": (lambda p: (p / "points.jsonl").write_text("1\n"), "not a point"),
    "a demo cut short": (
        lambda p: (p / "demo.json").write_text('{"methods": []}'), "has no finished run"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_folder_that_cannot_be_reported_is_one_line(tmp_path, what):
    damage, said = DAMAGE[what]
    (tmp_path / "f").mkdir()
    damage(tmp_path / "f")
    with pytest.raises(InputError, match=said) as error:
        write.report([tmp_path / "f"])
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.html"))


def test_only_an_earlier_report_is_replaced(tmp_path):
    run = write_run(tmp_path / "run", run_record())
    assert write.report([run]) == run / "report.html" == write.report([run])
    (tmp_path / "mine.html").write_text("<p>mine")
    with pytest.raises(InputError, match="is not a report: choose another file"):
        write.report([run], tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "<p>mine"
    for out, said in ((tmp_path, "is a folder"), (tmp_path / "no" / "r.html", "does not exist")):
        with pytest.raises(InputError, match=said):
            write.report([run], out)


def test_a_report_that_cannot_be_made_is_one_line(tmp_path):
    said = []
    write.attempt(tmp_path / "r.html", lambda: write.run_html({}), said.append, tmp_path / "out")
    write.attempt(tmp_path / "no" / "r.html", lambda: "page", said.append, tmp_path / "out")
    assert all(line.startswith("no report was written (") for line in said) and len(said) == 2
    assert said[1].endswith(f"to make it, run icp-jax report {tmp_path / 'out'}")
    assert not list(tmp_path.iterdir())
