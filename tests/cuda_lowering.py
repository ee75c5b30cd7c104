"""Lowering for an NVIDIA GPU on a machine that has none."""

import json

import jax

from icp_jax.config import MemoryConfig
from icp_jax.models import attention
from icp_jax.planning import memory as memory_plan
from icp_jax.planning.workload import describe, resolved, workload

CUDNN = "jax._src.cudnn.fused_attention_stablehlo."
CALLS = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward", "LayoutConstraint")


def pretend(monkeypatch):
    """Functions that are traced take a GPU's forms, cuDNN's attention among them."""
    monkeypatch.setattr(CUDNN + "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(CUDNN + "check_compute_capability", lambda *at_least: True)
    monkeypatch.setattr(attention, "_cudnn_takes", lambda head_dim: True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def programs(monkeypatch, folder, model, asked):
    """The StableHLO of every program of a run, by name. model: a config; asked: a RunConfig."""
    (folder / "config.json").write_text(json.dumps(model | {"dtype": "float16"}))
    source = describe(str(folder))
    work = workload(source, resolved(asked, source))
    lowered = {}

    def beside(self, function, *args, **kwargs):
        program = function.trace(*args, **kwargs).lower(lowering_platforms=("cuda",))
        lowered[function.__name__] = lowered.get(function.__name__, "") + program.as_text()
        return 0

    pretend(monkeypatch)
    monkeypatch.setattr(memory_plan.Programs, "beside", beside)
    for remat in (False, True):
        memory_plan.need(work, MemoryConfig("host", remat=remat))
    return lowered


def exported(function, *args):
    """The StableHLO of a jitted function, exported for CUDA."""
    known = [jax.export.DisabledSafetyCheck.custom_call(name) for name in CALLS]
    made = jax.export.export(function, platforms=["cuda"], disabled_checks=known)(*args)
    return made.mlir_module()
