"""Every program of a run on an NVIDIA GPU traces and lowers to StableHLO, which needs no GPU.

What XLA makes of it there is for `test_gpu.py` to see.
"""

import pytest
from conftest import LLAMA, OPT
from cuda_lowering import programs

from icp_jax import CalibrationConfig, PruneConfig, QuantConfig, RunConfig

RUNS = {
    "icp": {},
    "2:4 with 4 bits": {
        "prune": PruneConfig(pattern="2:4"),
        "quant": QuantConfig(bits=4, group=16),
    },
    "alps": {"prune": PruneConfig("alps", sparsity=0.5)},
    "icp with alps": {"prune": PruneConfig(solver="alps")},
    "wanda": {"prune": PruneConfig("wanda", sparsity=0.5)},
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("model", [OPT, LLAMA], ids=["opt", "llama"])
def test_programs_lower_for_cuda(monkeypatch, tmp_path, model, run, dtype):
    calibration = CalibrationConfig("text.txt", samples=8, seq_len=32)
    asked = RunConfig(str(tmp_path), dtype=dtype, calibration=calibration, **RUNS[run])
    lowered = programs(monkeypatch, tmp_path, model, asked)

    blocks = {"forward", "forward_beside", "collect"}
    alps = {"alps", "spectrum"}
    methods = {"wanda": {"wanda"}, "alps": alps, "icp with alps": alps | {"_steps"}}
    method = methods.get(run, {"_steps", "factor", "_walk"})
    assert blocks | method <= set(lowered)
    for name in blocks | (method & {"_steps"}):
        assert ("__cudnn$fmha" in lowered[name]) == (dtype == "bfloat16")
    if dtype == "float32":  # no TF32
        dots = [line for line in "".join(lowered.values()).splitlines() if "dot_general" in line]
        assert len(dots) > 50 and all("[HIGHEST, HIGHEST]" in line for line in dots)
