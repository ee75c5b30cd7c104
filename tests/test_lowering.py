"""Every program of a run on an NVIDIA GPU traces and lowers to StableHLO, which needs no GPU.

What XLA makes of it there is for `test_gpu.py` to see.
"""

import json

import jax
import pytest
from conftest import LLAMA, OPT

from icp_jax import CalibrationConfig, PruneConfig, QuantConfig, RunConfig
from icp_jax.config import MemoryConfig
from icp_jax.models import attention
from icp_jax.planning import memory as memory_plan
from icp_jax.planning.workload import describe, resolved, workload

RUNS = {
    "icp": {},
    "2:4 with 4 bits": {
        "prune": PruneConfig(pattern="2:4"),
        "quant": QuantConfig(bits=4, group=16),
    },
    "wanda": {"prune": PruneConfig("wanda", sparsity=0.5)},
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("model", [OPT, LLAMA], ids=["opt", "llama"])
def test_programs_lower_for_cuda(monkeypatch, tmp_path, model, run, dtype):
    (tmp_path / "config.json").write_text(json.dumps(model | {"dtype": "float16"}))
    source = describe(str(tmp_path))
    calibration = CalibrationConfig("text.txt", samples=8, seq_len=32)
    asked = RunConfig(str(tmp_path), dtype=dtype, calibration=calibration, **RUNS[run])
    work = workload(source, resolved(asked, source))
    lowered = {}

    def beside(self, function, *args, **kwargs):
        program = function.trace(*args, **kwargs).lower(lowering_platforms=("cuda",))
        lowered[function.__name__] = lowered.get(function.__name__, "") + program.as_text()
        return 0

    cudnn = "jax._src.cudnn.fused_attention_stablehlo."
    monkeypatch.setattr(cudnn + "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn + "check_compute_capability", lambda *at_least: True)
    monkeypatch.setattr(attention, "_cudnn_takes", lambda head_dim: True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(memory_plan.Programs, "beside", beside)
    for remat in (False, True):
        memory_plan.need(work, MemoryConfig("host", remat=remat))

    blocks = {"forward", "forward_beside", "collect"}
    method = {"wanda"} if run == "wanda" else {"_steps", "factor", "_walk"}
    assert blocks | method <= set(lowered)
    for name in blocks | (method & {"_steps"}):
        assert ("__cudnn$fmha" in lowered[name]) == (dtype == "bfloat16")
    if dtype == "float32":  # no TF32
        dots = [line for line in "".join(lowered.values()).splitlines() if "dot_general" in line]
        assert len(dots) > 50 and all("[HIGHEST, HIGHEST]" in line for line in dots)
