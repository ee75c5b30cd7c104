"""`benchmarks/gpu_check.py`: its plan, limits and report, and a whole tiny check on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cuda_lowering import exported, pretend, programs
from gpu import driver, points, points_met, rates, report, sketch, stages, tuning, variants
from gpu.gpu_tests import outcomes
from gpu.stages import STAGES, Stage
from gpu_check import FULL, OWN, TINY
from prune_job import hf_config

from icp_jax import CalibrationConfig, RunConfig

ROOT = Path(__file__).parents[1]


def test_stages_that_no_longer_fit_are_dropped():
    taken, dropped = stages.fitting(STAGES, 200)
    assert [s.name for s in taken] == ["same", "7b", "plan"]
    assert [s.name for s in dropped] == ["compensate", "torch", "tests", "sweep"]
    assert stages.fitting(STAGES, 8 * 60)[1] == []
    assert [s.name for s in stages.named("torch,same")] == ["same", "torch"]
    with pytest.raises(ValueError, match="no stage 8b: there are same, 7b"):
        stages.named("8b")


@pytest.fixture
def job(tmp_path):
    (tmp_path / "scratch").mkdir()
    return {"command": "x", "tiny": True, "scratch": str(tmp_path / "scratch"), "cache": ""}


def test_a_stage_that_fails_or_runs_over_leaves_the_others_alone(monkeypatch, tmp_path, job):
    found = "import sys, json, time; open(sys.argv[1], 'w').write(json.dumps({'result': 1}))"
    codes = {"good": found, "bad": found + "; sys.exit('no card')", "slow": found}
    codes["slow"] += "; time.sleep(60)"

    def command(stage, given, out):
        return [sys.executable, "-c", codes[stage.module], str(out)]

    monkeypatch.setattr(driver, "command", command)
    asked = [Stage(name, name, 1, 3) for name in ("bad", "slow", "good")]
    said, out = [], tmp_path / "out"
    told = driver.run_all([*asked, Stage("long", "good", 100, 100)], job, out, 1.0, said.append)
    records = {s.name: json.loads((out / f"{s.name}.json").read_text()) for s in asked}
    assert all(record["result"] == 1 for record in records.values())
    assert records["bad"]["error"] == "status 1\nno card\n"
    assert records["slow"]["error"].startswith("stopped after 3 s")
    assert "error" not in records["good"] and not (out / "long.json").exists()
    assert told["failed"] == ["bad", "slow"] and told["dropped"] == ["long"]
    assert json.loads((out / "check.json").read_text()) == told
    assert said[0] == "1 minutes may be too short for: long"
    assert said[-1].startswith("long: dropped, it takes 100 s and ")


def test_a_sketch_tells_distances():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((200, 300)) * (rng.random((200, 300)) > 0.5)
    one = sketch.of("0.q", kernel)
    assert sketch.compare(one, sketch.of("0.q", kernel)) == (0, 0)
    assert one["zeros"] == np.sum(kernel == 0)
    other = np.where(rng.random(kernel.shape) < 0.1, 0, kernel + 0.01 * (kernel != 0))
    differ, distance = sketch.compare(one, sketch.of("0.q", other))
    np.testing.assert_allclose(differ, np.mean((kernel != 0) != (other != 0)), atol=0.02)
    true = np.linalg.norm(other - kernel) / np.linalg.norm(kernel)
    np.testing.assert_allclose(distance, true, rtol=0.3)


def test_a_check_of_all_stages_on_the_cpu(tmp_path):
    """What needs no GPU runs, and gives what the committed CPU results say."""
    code = [sys.executable, "benchmarks/gpu_check.py", "--out", str(tmp_path), "--tiny"]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True)
    records = {s.name: json.loads((tmp_path / f"{s.name}.json").read_text()) for s in STAGES}
    assert done.returncode == 0, {n: r.get("error") for n, r in records.items()}
    skipped = [name for name, record in records.items() if "skipped" in record]
    assert skipped in ([], ["torch"])  # torch is optional
    found = {name: record.get("result", {}) for name, record in records.items()}
    assert all(case["met"] for case in found["same"]["cases"].values())
    assert found["same"]["resumed"]["same_bytes"] and found["same"]["resumed"]["said"]
    for name in ("cold", "warm"):
        run = found["7b"][name]
        assert len(run["blocks"]) == TINY["blocks"] and 0 < run["first_pass"] < run["seconds"]
        assert all(row["share"] > 0 for row in run["phases"] if row["phase"] != "write")
    assert found["plan"]["peaks"]["host"]["ratio"] > 0
    assert all(v["sample"] > 0 for v in found["compensate"]["variants"])
    assert found["compensate"]["variants"][0]["profile"]["kernels"]
    assert found["compensate"]["from_host"]["sample"] > 0
    assert found["tests"]["collected"] > 10
    assert found["sweep"]["errors_off"] < 1e-3
    assert "tiny shapes: no number here" in done.stdout


def test_junit_outcomes(tmp_path):
    (tmp_path / "x.xml").write_text(
        '<testsuites><testsuite><testcase name="a" time="1.5"/><testcase name="b" time="2">'
        '<failure message="assert 1 == 2">where</failure></testcase><testcase name="c">'
        '<skipped message="no"/></testcase></testsuite></testsuites>'
    )
    found = outcomes(tmp_path / "x.xml")
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["seconds"] == 3.5 and found["said"]["b"] == "assert 1 == 2\nwhere"


# ---------------------------------------------------------------- the report


def made_up():
    """The results of a check of a GPU, by stage."""
    case = {"masks_differ": 0.002, "masks_differ_first_block": 0.001, "masks_differ_most": 0.01}
    case |= {"kernels_distance": 0.01, "errors_off": 0.003, "perplexity_ratio": 1.002}
    case |= {"met": True}
    seconds = {"dense": 0.2, "compensate": 0.8, "statistics": 0.4, "prune": 0.5, "sparse": 0.2}
    phases = [
        {"phase": p, "all": 4 * s, "block": s, "tflops": 400.0, "share": 0.65}
        for p, s in seconds.items()
    ]
    phases.append({"phase": "write", "all": 1.0, "block": 0.25, "tflop": 0.0})
    whole = {"blocks": 32, "seconds": 90.0, "start": 12.0, "share_start": 12 / 90}
    run = {"seconds": 25.0, "phases": phases, "whole": whole, "peak_device_mib": 3900}
    run |= {"peak_host_mib": 15000, "beside_pool_mib": 700, "first_pass": 12.5}
    rate = {"bfloat16": 6e14, "float32": 5e13, "to_device": 5e10, "to_host": 5e10}
    kernel = {"kernel": "gemm_bf16", "seconds": 3e-3, "share": 0.5}
    step = {"name": "as it runs", "sample": 6e-3, "tflops": 410.0, "share": 0.66}
    step["profile"] = {"kernels": [kernel]}
    slower = {"name": "batch 2", "error": "no memory"}
    return {
        "same": {"cases": {"opt float32": case}, "resumed": {"same_bytes": True, "said": []}},
        "7b": {
            "rates": rate | {"to_device_pageable": 9e9},
            "cold": run | {"first_pass": 45.0},
            "warm": run,
            "tight": {"limit_gib": 10, "seconds": 24.0, "peak_host_mib": 12000},
        },
        "plan": {"peaks": {"host": {"planned_mib": 14000, "seen_mib": 15000, "ratio": 1.07}}},
        "compensate": {"variants": [step, slower], "left_out": ["batch 4"]},
        "torch": {"block": {p: 2 * s for p, s in seconds.items()}, "whole": {"seconds": 200.0}},
        "tests": {"passed": 20, "failed": 1, "skipped": 0, "seconds": 60.0, "said": {"b": "x"}},
    }


def test_the_report_of_a_made_up_folder(tmp_path):
    about = {"card": "NVIDIA H200, 580.159.04", "machine": "a machine", "commit": "abc"}
    about["versions"] = {"jax": "0.12.0"}
    for name, result in made_up().items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**about, "result": result}))
    failed = {**about, "error": "status 1\nno memory", "result": made_up()["7b"]}
    (tmp_path / "7b.json").write_text(json.dumps(failed))
    check = {"command": "make gpu-check", "dropped": ["sweep"], "tiny": False}
    (tmp_path / "check.json").write_text(json.dumps(check))
    code = [sys.executable, "benchmarks/gpu_check.py", "--report", str(tmp_path)]
    said = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for line in (
        "- card and driver: NVIDIA H200, 580.159.04",
        "- versions: jax 0.12.0",
        "- stages dropped for want of time: sweep",
        "| opt float32 | 0.10% | 0.20% | 1.00% | 1.0e-02 | 3.0e-03 | 1.0020 | yes |",
        "Failed: no memory",
        "| compensate | 3.20 | 0.800 | 400 | 65% |",
        "With a limit of 10 GiB on pinned memory: 24.0 s, the host's peak 12000 MiB.",
        "| batch 2 | failed |  |  |",
        "| `gemm_bf16` | 3.000 | 50% |",
        "## sweep\n\nDropped: the time did not allow it.",
        "| first pass of the first block, warm cache | within 15 s | 12.5 s | met |",
        "| first pass of the first block, cold cache | within 40 s | 45.0 s | NOT MET |",
        "| the pool at 7B | under 4096 MiB | 3900 MiB | met |",
        "| compensation | 60% of the bfloat16 rate | 65% | met |",
        "| the host's peak | at most 1.2 × plan | 1.07 | met |",
        "| prune beside PyTorch | as fast | 2.00 × | met |",
        "| the whole run beside PyTorch | 3 × as fast | 2.22 × | NOT MET |",
        "| `pytest -m gpu` | none failed | 1 failed | NOT MET |",
    ):
        assert line in said, line


def test_what_was_not_measured_is_not_met(tmp_path):
    told = points_met.points({stage.name: {} for stage in STAGES})
    assert {point[3] for point in told} == {"not measured"}
    assert "Not run." in report.render(tmp_path)


# ---------------------------------------------------------------- for CUDA


@pytest.mark.parametrize("variant", variants.VARIANTS, ids=lambda v: v.name)
def test_a_step_at_7b_lowers_for_cuda(monkeypatch, variant):
    pretend(monkeypatch)
    given = {**OWN, **FULL, "seq_len": FULL["length"]}
    state = jax.eval_shape(lambda: variants.start(variant, tuning.block(given)[1]))
    x = jax.ShapeDtypeStruct((variant.batch, FULL["length"], 4096), jnp.float32)
    with variants.attending(variant):
        lowered = exported(variants.step(variant, tuning.block_of(given)), state, x, x)
    assert ("__cudnn$fmha" in lowered) == (variant.attention == "auto")


def test_the_run_at_7b_lowers_for_cuda(monkeypatch, tmp_path):
    model = hf_config({**OWN, **FULL, "seq_len": FULL["length"]})
    calibration = CalibrationConfig("ids.npy", FULL["samples"], FULL["length"])
    asked = RunConfig(str(tmp_path), dtype="bfloat16", calibration=calibration)
    lowered = programs(monkeypatch, tmp_path, model, asked)
    assert {"forward", "forward_beside", "collect", "_steps", "factor", "_walk"} <= set(lowered)
    assert "__cudnn$fmhaSoftmaxBackward" in lowered["_steps"]


def test_a_sweep_lowers_for_cuda(monkeypatch, tmp_path):
    pretend(monkeypatch)
    errors, many = points.program({"tiny": False, "scratch": str(tmp_path)})
    assert len(many) == 16
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    assert exported(jax.jit(errors), many[0])
    assert "__cudnn$fmha" in exported(jax.jit(jax.vmap(errors)), stacked)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_products_lower_for_cuda(dtype):
    a = jax.ShapeDtypeStruct((rates.SIZE, rates.SIZE), dtype)
    assert "HIGHEST" in exported(rates.multiply(), a, a)
